"""A decoder for models with recurrent states: every prefix has a cache, forked for its candidates.

Such states cannot be padded or shared, so each prefix's rows are a batch of their own. Accepted
tokens are computed one by one: some architectures get several at once after a cache wrong.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache, DynamicCache

from stars_engine.backends.decoders import Branches, Decoder, Forward
from stars_engine.kv_cache.prefix_cache import PrefixCache
from stars_engine.kv_cache.states import StatePrefix, StateStore
from stars_engine.kv_cache.weight_fingerprint import WeightFingerprint


class ForkingDecoder(Decoder[StatePrefix]):
    """Keeps a transformers cache for each prefix.

    Args:
        model: A causal language model of transformers.
        context_len: Positions it has; None for no limit.
    """

    def __init__(self, model: Any, context_len: int | None = None) -> None:
        self._forward = Forward(model)
        self._context_len = context_len
        fingerprint = WeightFingerprint([model])
        super().__init__(PrefixCache(_new_store, self._extend, fingerprint.has_changed))

    def branch(self, prefixes: Sequence[StatePrefix], num_tokens: int) -> Branches:
        """See `Decoder`."""
        groups: dict[StatePrefix, list[int]] = {}
        for row, prefix in enumerate(prefixes):
            groups.setdefault(prefix, []).append(row)
        return _ForkedBranches(self, groups)

    def fork(self, prefix: StatePrefix, count: int) -> Cache:
        """Return a cache of that many rows, each with the prefix's states."""
        forked: Any = copy.deepcopy(prefix.states)
        forked.reorder_cache(torch.zeros(count, dtype=torch.long, device=self._forward.device))
        return forked  # type: ignore[no-any-return]

    def read(self, tokens: torch.Tensor, position: int, cache: Cache) -> torch.Tensor:
        """Append one token to each row, `(rows,)`; return `(rows, vocab)`."""
        return self._forward(tokens[:, None], positions=self._position(position), cache=cache)

    def _extend(
        self,
        prefixes: Sequence[StatePrefix],
        ids: Sequence[list[int]],
        columns: Sequence[Sequence[int]],
    ) -> torch.Tensor:
        return torch.stack([self._extend_one(*each) for each in zip(prefixes, ids, strict=True)])

    def _extend_one(self, prefix: StatePrefix, ids: list[int]) -> torch.Tensor:
        if prefix.states is None:
            prefix.states = DynamicCache(config=self._forward.config.get_text_config())
            tokens = torch.tensor([ids], device=self._forward.device)
            logits = self._forward(tokens, cache=prefix.states)
            prefix.append(ids)
            return logits
        for token in ids:
            new = torch.tensor([token], device=self._forward.device)
            logits = self.read(new, len(prefix.token_ids), prefix.states)
            prefix.append([token])
        return logits

    def _position(self, position: int) -> torch.Tensor:
        """A row that has ended runs on at the last position of the context."""
        if self._context_len is not None:
            position = min(position, self._context_len - 1)
        return torch.tensor([[position]], device=self._forward.device)


class _ForkedBranches:
    def __init__(self, decoder: ForkingDecoder, groups: dict[StatePrefix, list[int]]) -> None:
        self._decoder = decoder
        self._groups = [
            (rows, len(prefix.token_ids), decoder.fork(prefix, len(rows)))
            for prefix, rows in groups.items()
        ]
        self._num_read = 0

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """See `Branches`."""
        logits: list[torch.Tensor] = [torch.empty(0)] * len(tokens)
        for rows, length, cache in self._groups:
            found = self._decoder.read(tokens[rows], length + self._num_read, cache)
            for row, values in zip(rows, found, strict=True):
                logits[row] = values
        self._num_read += 1
        return torch.stack(logits)


def _new_store() -> StateStore:
    return StateStore(lambda states, _: copy.deepcopy(states), exact_only=True)
