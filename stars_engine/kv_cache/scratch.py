"""Scratch KV: keys and values of the tokens that rows add to their prefixes."""

from __future__ import annotations

import copy
from typing import Any, Self

import torch
from transformers import Cache

from stars_engine.kv_cache.block import ByLayer


class ScratchKV(Cache):
    """A transformers cache that holds only the rows' new tokens.

    Attention reads the prefixes from elsewhere, so rejecting a candidate costs nothing.

    Args:
        num_rows: Rows.
        capacity: Maximum tokens of a row.

    Attributes:
        num_tokens: Tokens of each row so far.
        keys: By layer, `(rows, kv_heads, capacity, head_dim)`.
        values: Like `keys`.
    """

    def __init__(self, num_rows: int, capacity: int) -> None:
        super().__init__(layers=[])
        self.num_rows, self.capacity = num_rows, capacity
        self.num_tokens = 0
        self.keys: ByLayer = []
        self.values: ByLayer = []

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append a layer's keys and values; return those of all tokens so far."""
        end = self.num_tokens + key_states.shape[2]
        if layer_idx == len(self.keys):
            if end == self.capacity:  # nothing will be appended
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
        """Return the tokens of a row so far. Positions are passed, so models do not rely on it."""
        return self.num_tokens

    def first(self, row: int, count: int) -> tuple[ByLayer, ByLayer]:
        """Return a row's first keys and values, by layer `(kv_heads, count, head_dim)`."""
        keys, values = (
            [states[row, :, :count] for states in part] for part in (self.keys, self.values)
        )
        return keys, values

    def clone(self) -> Self:
        """Return a copy with tensors of its own."""
        other = copy.copy(self)
        other.keys, other.values = (
            [states.clone() for states in part] for part in (self.keys, self.values)
        )
        return other

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        _, heads, _, dim = like.shape
        return like.new_empty(self.num_rows, heads, self.capacity, dim)
