"""Next tokens of a causal language model as labels."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from stars_engine.rewards.batching import at_columns


class NextWords:
    """Reads how a causal language model goes on: some next tokens, as if there were no others.

    Args:
        model: Of transformers.
        words: The tokens' ids.
    """

    def __init__(self, model: Any, words: Sequence[int]) -> None:
        self._model = model
        self._words = list(words)
        self._can_choose = "logits_to_keep" in inspect.signature(model.forward).parameters

    def __call__(self, columns: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """Return the logits of the words, `(rows, count, words)`; see `batching.CallAt`."""
        inputs = {"use_cache": False, **inputs}
        if self._can_choose:  # a vocabulary's logits of all tokens would be a lot
            inputs["logits_to_keep"], columns = torch.unique(columns, return_inverse=True)
        logits = self._model(**inputs).logits[..., self._words]
        return at_columns(logits, columns)
