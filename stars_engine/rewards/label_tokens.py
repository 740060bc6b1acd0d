"""Next-token logits of a causal language model as labels."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from stars_engine.rewards.batching import at_columns


class NextTokenLogits:
    """Reads the logits of some next tokens from a causal language model.

    Args:
        model: A transformers model.
        words: The ids of the tokens.
    """

    def __init__(self, model: Any, words: Sequence[int]) -> None:
        self._model = model
        self._words = list(words)
        self._can_choose = "logits_to_keep" in inspect.signature(model.forward).parameters

    def __call__(self, columns: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """Return the logits of the tokens, `(rows, count, words)`; see `batching.CallAt`."""
        inputs = {"use_cache": False, **inputs}
        if self._can_choose:  # logits over the vocabulary at every position need much memory
            inputs["logits_to_keep"], columns = torch.unique(columns, return_inverse=True)
        logits = self._model(**inputs).logits[..., self._words]
        return at_columns(logits, columns)
