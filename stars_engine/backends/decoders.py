"""What a decoder is: a prefix cache, and candidate rows that branch off its prefixes."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, Protocol

import torch
from transformers import Cache

from stars_engine.kv_cache.cached_prefix import P
from stars_engine.kv_cache.prefix_cache import PinnedPrefix, PrefixCache, PrefixRequest


class Branches(Protocol):
    """Candidate rows, decoded together."""

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append one token to each row, `(rows,)`; return the logits after it, `(rows, vocab)`."""
        ...


class Decoder(Generic[P]):
    """Computes prefixes and branches candidates off them.

    A prefix's output is the logits after its last token, `(vocab,)`. Branching leaves it as it is,
    so rejecting a candidate takes no action.

    Args:
        cache: The prefixes.
    """

    def __init__(self, cache: PrefixCache[P]) -> None:
        self.cache = cache

    def compute(
        self, prefixes: Sequence[tuple[Sequence[int], PinnedPrefix[P] | None]]
    ) -> list[PinnedPrefix[P]]:
        """Return prefixes with all their tokens, each for one holder.

        Args:
            prefixes: Their tokens, and what the holder has of each from before.
        """
        return self.cache.fetch(
            [PrefixRequest(list(ids), (len(ids) - 1,), pinned) for ids, pinned in prefixes]
        )

    @abstractmethod
    def branch(self, prefixes: Sequence[P], num_tokens: int) -> Branches:
        """Start a candidate row on each of the given prefixes; repeats are separate rows.

        Args:
            prefixes: The prefix of each row.
            num_tokens: Maximum steps.
        """

    def free_unused(self) -> None:
        """Free what no request in progress needs."""
        self.cache.free_unused()


class Forward:
    """Calls a model for the logits after the last token, with the arguments that it understands.

    Args:
        model: A causal language model of transformers, with an adapter or without.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        # A PeftModel wraps one; a model that was given adapters is one itself.
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._accepts = set(inspect.signature(base.forward).parameters)
        # Models without attention name their cache differently.
        self._cache_name = "cache_params" if "cache_params" in self._accepts else "past_key_values"
        self.config = model.config
        self.device: torch.device = model.get_input_embeddings().weight.device

    def __call__(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        """Return the logits after `(rows, count)` ids, `(rows, vocab)`."""
        options: dict[str, Any] = {"logits_to_keep": 1, "position_ids": positions}
        options = {
            name: value
            for name, value in options.items()
            if value is not None and name in self._accepts
        }
        if cache is not None:
            options[self._cache_name] = cache
        output = self._model(
            input_ids=ids, attention_mask=mask, use_cache=cache is not None, **options
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits
