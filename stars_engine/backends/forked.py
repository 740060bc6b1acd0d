"""A decoder for models with recurrent states: every prefix has a cache, forked for its candidates.

Such states cannot be padded or shared, so each prefix's rows are a batch of their own, and accepted
tokens are read one by one: several at once after a cache are read wrongly by some architectures.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import Cache, DynamicCache

from stars_engine.backends.decoders import Branches, Decoder, Forward, Prefix


class ForkingDecoder(Decoder):
    """Keeps a cache of transformers' own for each prefix.

    Args:
        model: A causal language model of transformers.
        context_len: Positions it has; None for no limit.
    """

    def __init__(self, model: Any, context_len: int | None = None) -> None:
        self._forward = Forward(model)
        self._context_len = context_len

    def start(self, prompts: Sequence[Sequence[int]]) -> list[Prefix]:
        """See `Decoder`."""
        prefixes = []
        for prompt in prompts:
            cache = DynamicCache(config=self._forward.config.get_text_config())
            ids = torch.tensor([list(prompt)], device=self._forward.device)
            logits = self._forward(ids, cache=cache)
            prefixes.append(Prefix(list(prompt), logits[0], cache=cache))
        return prefixes

    def copy(self, prefix: Prefix) -> Prefix:
        """See `Decoder`."""
        return replace(prefix, cache=copy.deepcopy(prefix.cache))

    def extend(self, kept: Sequence[tuple[Prefix, Sequence[int]]]) -> None:
        """See `Decoder`."""
        for prefix, ids in kept:
            for token in ids:
                new = torch.tensor([[token]], device=self._forward.device)
                prefix.next_logits = self._forward(
                    new, positions=self._position(len(prefix.token_ids)), cache=prefix.cache
                )[0]
                prefix.token_ids = [*prefix.token_ids, token]

    def branch(self, rows: Sequence[Prefix], num_tokens: int) -> Branches:
        """See `Decoder`."""
        groups: dict[Prefix, list[int]] = {}
        for row, prefix in enumerate(rows):
            groups.setdefault(prefix, []).append(row)
        return _ForkedBranches(self, groups)

    def fork(self, prefix: Prefix, count: int) -> Cache:
        """Return a cache of that many rows, each with the prefix's states."""
        forked: Any = copy.deepcopy(prefix.cache)
        forked.reorder_cache(torch.zeros(count, dtype=torch.long, device=self._forward.device))
        return forked  # type: ignore[no-any-return]

    def read(self, tokens: torch.Tensor, position: int, cache: Cache) -> torch.Tensor:
        """Append one token to each row, `(rows,)`; return `(rows, vocab)`."""
        return self._forward(tokens[:, None], positions=self._position(position), cache=cache)

    def _position(self, position: int) -> torch.Tensor:
        """A row that has ended runs on at the last position of the context."""
        if self._context_len is not None:
            position = min(position, self._context_len - 1)
        return torch.tensor([[position]], device=self._forward.device)


class _ForkedBranches:
    def __init__(self, decoder: ForkingDecoder, groups: dict[Prefix, list[int]]) -> None:
        self._decoder = decoder
        self._groups = [
            (rows, len(prefix.token_ids), decoder.fork(prefix, len(rows)))
            for prefix, rows in groups.items()
        ]
        self._num_read = 0

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: list[torch.Tensor] = [torch.empty(0)] * len(tokens)
        for rows, length, cache in self._groups:
            found = self._decoder.read(tokens[rows], length + self._num_read, cache)
            for row, values in zip(rows, found, strict=True):
                logits[row] = values
        self._num_read += 1
        return torch.stack(logits)
