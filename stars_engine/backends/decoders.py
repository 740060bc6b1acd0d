"""How committed prefixes are continued: what every decoder does, and one pass through the model.

A `Prefix` is immutable in all but `extend`: drafting leaves it as it is, so a rejected candidate
leaves no trace that would have to be undone.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers import Cache

from stars_engine.grammars import GrammarState

KeysValues = tuple[torch.Tensor, torch.Tensor]  # each (1, heads, num_tokens, head_dim)


@dataclass(slots=True, weakref_slot=True, eq=False)
class Prefix:
    """One rollout's committed tokens.

    Attributes:
        token_ids: Prompt and accepted segments.
        next_logits: `(vocab,)`, the model's logits after the last of them.
        layers: Keys and values by layer, where a `PaddedDecoder` keeps them.
        cache: The cache of a `ForkingDecoder`.
        slot: Where a `SharedPrefixDecoder` keeps them.
        grammar: Where in its request's grammar the completion is.
        num_in_grammar: Tokens of the prefix that the grammar has consumed, the prompt included.
    """

    token_ids: list[int]
    next_logits: torch.Tensor
    layers: list[KeysValues] = field(default_factory=list)
    cache: Cache | None = None
    slot: Any = None
    grammar: GrammarState | None = None
    num_in_grammar: int = 0


class Branches(Protocol):
    """Candidate rows growing beside each other from their prefixes."""

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append one token to each row, `(rows,)`; return the logits after it, `(rows, vocab)`."""
        ...


class Decoder(Protocol):
    """Reads prefixes and branches off candidates."""

    def start(self, prompts: Sequence[Sequence[int]]) -> list[Prefix]:
        """Read prompts."""
        ...

    def copy(self, prefix: Prefix) -> Prefix:
        """Return a prefix of the same tokens, which goes its own way."""
        ...

    def extend(self, kept: Sequence[tuple[Prefix, Sequence[int]]]) -> None:
        """Append accepted tokens to prefixes."""
        ...

    def branch(self, rows: Sequence[Prefix], num_tokens: int) -> Branches:
        """Begin one candidate row on each of the given prefixes (repeats are separate rows).

        Args:
            rows: Their prefixes.
            num_tokens: Steps that they are taken at most.
        """
        ...

    @property
    def bytes_per_token(self) -> int:
        """Memory of what is kept of one token; 0 if nothing is, or not by the token."""
        return 0

    def limit_cache(self, max_bytes: int | None) -> None:
        """Bound what is kept of texts, in use or not. Most keep none that are not."""
        return

    def drop_unused(self) -> None:
        """Let go of what no prefix needs. Most keep nothing else."""
        return


class Forward:
    """One call of the model for the logits after the last token, with what it understands.

    Args:
        model: A causal language model of transformers, with an adapter or without.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        # A PeftModel has one; a model that has been given adapters is one itself.
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._accepts = set(inspect.signature(base.forward).parameters)
        # Models without attention name their states in a way of their own.
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
        """Read `(rows, count)` ids; return `(rows, vocab)` logits."""
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
