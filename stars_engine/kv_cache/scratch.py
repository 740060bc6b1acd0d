"""Keys and values of the rows that go on from prefixes."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache

from stars_engine.kv_cache.pool import ByLayer


class OwnTokens(Cache):
    """A cache of the rows' own tokens alone; it returns those up to the newest.

    Args:
        num_rows: Rows.
        capacity: Tokens of a row at most.
    """

    def __init__(self, num_rows: int, capacity: int) -> None:
        super().__init__(layers=[])
        self.num_tokens = 0
        self.keys: ByLayer = []
        self.values: ByLayer = []
        self._num_rows, self._capacity = num_rows, capacity

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take a layer's new keys and values; return all of the rows' own."""
        end = self.num_tokens + key_states.shape[2]
        if layer_idx == len(self.keys):
            if end == self._capacity:  # all there will ever be
                self.keys.append(key_states)
                self.values.append(value_states)
                return key_states, value_states
            self.keys.append(self._empty(key_states))
            self.values.append(self._empty(value_states))
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        keys[:, :, self.num_tokens : end] = key_states
        values[:, :, self.num_tokens : end] = value_states
        return keys[:, :, :end], values[:, :, :end]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of a row before this pass; positions are given, so nobody counts by it."""
        return self.num_tokens

    def first(self, row: int, count: int) -> tuple[ByLayer, ByLayer]:
        """Return a row's first columns by layer, `(kv_heads, count, head_dim)`."""
        keys, values = (
            [states[row, :, :count] for states in part] for part in (self.keys, self.values)
        )
        return keys, values

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        _, heads, _, dim = like.shape
        return like.new_empty(self._num_rows, heads, self._capacity, dim)
