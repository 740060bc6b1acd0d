"""Read one number from a classifier's logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from stars_engine.errors import ModelLoadError


def names_of(config: Any) -> dict[int, str]:
    """Return the names of a model's labels by index."""
    return {index: config.id2label[index] for index in sorted(config.id2label)}


def pick_label(names: Mapping[int, str], label: int | str | None, name: str) -> int:
    """Return the index of a label given by index or name; by default, of the only label.

    Raises:
        ModelLoadError: There is no such label, or no label is given and there are several.
    """
    known = ", ".join(f"{index} ({text})" for index, text in names.items())
    if label is None:
        if len(names) == 1:
            return 0
        raise ModelLoadError(
            f"{name} has {len(names)} labels: {known}. Hint: choose the one that is the reward "
            "with label=<index or name>"
        )
    for index, text in names.items():
        if label in (index, text):
            return index
    raise ModelLoadError(f"{name} has no label {label!r}. Hint: use one of {known}")


def read_label(
    logits: torch.Tensor, label: int, output: str, *, independent: bool = False
) -> torch.Tensor:
    """Return a label's logit, probability or log-odds.

    Args:
        logits: (..., labels).
        label: The index of the label.
        output: "logit", "probability" or "log_odds" (log p - log(1 - p), which stays finite where
            p rounds to 0 or 1).
        independent: Whether each label has its own probability (sigmoid), as in multi-label
            models; otherwise the probabilities of all labels sum to 1 (softmax).

    Returns:
        (...), float64.
    """
    logits = logits.double()
    own = logits[..., label]
    if output == "logit":
        return own
    if logits.shape[-1] > 1 and not independent:
        others = [index for index in range(logits.shape[-1]) if index != label]
        own = own - torch.logsumexp(logits[..., others], dim=-1)
    return own if output == "log_odds" else torch.sigmoid(own)
