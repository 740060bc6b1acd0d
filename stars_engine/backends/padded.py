"""A decoder with one cache for all rows, each copied from its prefix and padded on the left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from stars_engine.backends.decoders import Branches, Decoder, Forward
from stars_engine.kv_cache.prefix_cache import PrefixCache
from stars_engine.kv_cache.states import StatePrefix, StateStore
from stars_engine.kv_cache.weight_fingerprint import WeightFingerprint

KeysValues = tuple[torch.Tensor, torch.Tensor]  # each (1, heads, num_tokens, head_dim)


class PaddedDecoder(Decoder[StatePrefix]):
    """Keeps the KV of every prefix; computes only new tokens.

    Prefixes of different lengths share a batch by padding on the left, with a mask and explicit
    positions.

    Args:
        model: A causal language model of transformers.
        context_len: Positions it has; None for no limit.
    """

    def __init__(self, model: Any, context_len: int | None = None) -> None:
        self._forward = Forward(model)
        self._context_len = context_len
        fingerprint = WeightFingerprint([model])
        super().__init__(
            PrefixCache(lambda: StateStore(_first_tokens), self._extend, fingerprint.has_changed)
        )

    def branch(self, prefixes: Sequence[StatePrefix], num_tokens: int) -> Branches:
        """See `Decoder`."""
        return _PaddedBranches(self._forward, prefixes, self._context_len)

    def _extend(
        self,
        prefixes: Sequence[StatePrefix],
        ids: Sequence[list[int]],
        columns: Sequence[Sequence[int]],
    ) -> torch.Tensor:
        store = self.cache.store
        assert isinstance(store, StateStore)
        rows = _PaddedBranches(self._forward, prefixes, self._context_len)
        logits = rows.read(torch.tensor(ids, device=self._forward.device))
        for row, (prefix, new) in enumerate(zip(prefixes, ids, strict=True)):
            length = len(prefix.token_ids) + len(new)
            prefix.states = layers = rows.row_layers(row, length)
            prefix.append(new)
            num_bytes = sum(part.nbytes for layer in layers for part in layer)
            store.bytes_per_token = num_bytes // length
        return logits[:, None]


class _PaddedBranches:
    """Rows with a cache of their own, copied from the prefixes.

    A row that has ended runs on beside the others. Beyond the context it stays at the last
    position, and its tokens there are masked out: models count positions by their ids or by the
    mask, and learned positions have no row for more.
    """

    def __init__(
        self, forward: Forward, prefixes: Sequence[StatePrefix], context_len: int | None = None
    ) -> None:
        self._forward, self._context_len = forward, context_len
        lengths = torch.tensor([len(p.token_ids) for p in prefixes], device=forward.device)
        width = int(lengths.max())
        self._next_position = lengths  # (rows,)
        columns = torch.arange(width, device=forward.device)
        self._mask = (columns >= width - lengths[:, None]).long()  # (rows, width)
        self._cache = DynamicCache()
        for index, _ in enumerate(next((p.states for p in prefixes if p.states), [])):
            keys, values = (
                torch.cat([_pad_left(p.states[index][part], width) for p in prefixes])
                for part in (0, 1)
            )
            self._cache.update(keys, values, index)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """See `Branches`."""
        return self.read(tokens[:, None])

    def read(self, ids: torch.Tensor) -> torch.Tensor:
        """Append `(rows, count)` ids; return the logits after the last, `(rows, vocab)`."""
        rows, count = ids.shape
        steps = torch.arange(count, device=ids.device)
        positions = self._next_position[:, None] + steps
        self._next_position = self._next_position + count
        new_mask = self._mask.new_ones(rows, count)
        if self._context_len is not None:
            new_mask = (positions < self._context_len).long()
            positions = positions.clamp(max=self._context_len - 1)
        self._mask = torch.cat([self._mask, new_mask], dim=1)
        return self._forward(ids, self._mask, positions, self._cache)

    def row_layers(self, row: int, length: int) -> list[KeysValues]:
        """Copy out the last `length` columns of one row."""
        layers: list[Any] = self._cache.layers
        return [
            (
                layer.keys[row : row + 1, :, -length:].clone(),
                layer.values[row : row + 1, :, -length:].clone(),
            )
            for layer in layers
        ]


def _first_tokens(layers: Sequence[KeysValues], length: int) -> list[KeysValues]:
    """Return the KV of the first tokens. Tensors are shared: nothing writes into them."""
    return [(keys[:, :, :length], values[:, :, :length]) for keys, values in layers]


def _pad_left(states: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(states, (0, 0, width - states.shape[-2], 0))
