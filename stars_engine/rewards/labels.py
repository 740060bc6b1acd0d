"""From a classifier's logits to one number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from stars_engine.errors import ModelLoadError


def names_of(config: Any) -> dict[int, str]:
    """Return a model's labels by index."""
    return {index: config.id2label[index] for index in sorted(config.id2label)}


def pick_label(names: Mapping[int, str], label: int | str | None, name: str) -> int:
    """Return the index of a label given by index or name; the only one, if none is given.

    Raises:
        ModelLoadError: There is no such label, or none is given and there are several.
    """
    known = ", ".join(f"{index} ({text})" for index, text in names.items())
    if label is None:
        if len(names) == 1:
            return 0
        raise ModelLoadError(
            f"{name} has {len(names)} labels: {known}. Hint: say which one is the reward, "
            "label=<index or name>"
        )
    for index, text in names.items():
        if label in (index, text):
            return index
    raise ModelLoadError(f"label={label!r}: {name} has no such label. Hint: one of {known}")


def read_label(
    logits: torch.Tensor, label: int, output: str, *, independent: bool = False
) -> torch.Tensor:
    """Return a label's logit, probability or log-odds.

    Args:
        logits: (..., labels).
        label: Which one.
        output: "logit", "probability" or "log_odds" (log p - log(1 - p), finite also where p
            rounds to 0 or 1).
        independent: Whether each label has a probability of its own, as in multi-label models and
            where there is only one; else they share one by softmax.

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
