"""Keys and values of committed prefixes, one slot each, and of the candidates that branch off.

A prefix is stored once, whatever the number of its candidates. Rejecting a candidate is doing
nothing; accepting one copies its row behind the prefix.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache

ByLayer = list[torch.Tensor]

_STEP = 64  # tokens; a slot's capacity is a multiple


class SlotPool:
    """Keys and values of prefixes, by layer `(slots, kv_heads, capacity, head_dim)`.

    Slots grow by half of their number, and in capacity by a quarter, when they do not suffice; what
    is there is copied then, so growing costs little in all and wastes little room. A slot that is
    given back keeps its columns until somebody else takes it.
    """

    def __init__(self) -> None:
        self.keys: ByLayer = []
        self.values: ByLayer = []
        self._free: deque[int] = deque()  # never used ones, then as they were given back
        self._num_slots = 0
        self._capacity = _STEP

    def take(self, count: int) -> list[int]:
        """Return that many free slots: fresh ones, else those that were given back first."""
        lacking = count - len(self._free)
        if lacking > 0:
            grown = self._num_slots + max(lacking, self._num_slots // 2)
            self._resize(grown, self._capacity)
            self._free.extendleft(reversed(range(self._num_slots, grown)))
            self._num_slots = grown
        return [self._free.popleft() for _ in range(count)]

    def take_back(self, slot: int) -> bool:
        """Take a certain slot, with what is in it; False if somebody has it."""
        if slot not in self._free:
            return False
        self._free.remove(slot)
        return True

    def give_back(self, slot: int) -> None:
        """Let others use a slot; may be called from any thread."""
        self._free.append(slot)

    def reserve(self, length: int) -> None:
        """Make every slot long enough for so many tokens."""
        if length > self._capacity:
            grown = max(length, self._capacity + self._capacity // 4)
            grown = -(-grown // _STEP) * _STEP
            self._resize(self._num_slots, grown)
            self._capacity = grown

    def read(self, slots: Sequence[int], width: int) -> tuple[ByLayer, ByLayer]:
        """Return the first `width` columns of slots by layer: keys and values.

        Neighbours are a view of the pool; others are copied.
        """
        first, last = slots[0], slots[-1]
        if list(slots) == list(range(first, last + 1)):
            chosen: Any = slice(first, last + 1)
        else:
            chosen = torch.tensor(slots)
        keys, values = ([states[chosen, :, :width] for states in part] for part in self._parts())
        return keys, values

    def write(self, slot: int, start: int, keys: ByLayer, values: ByLayer) -> None:
        """Put new columns, by layer `(kv_heads, count, head_dim)`, into a slot."""
        if not self.keys:
            self.keys, self.values = ([self._empty(new) for new in part] for part in (keys, values))
        for part, new_part in zip(self._parts(), (keys, values), strict=True):
            for states, new in zip(part, new_part, strict=True):
                states[slot, :, start : start + new.shape[1]] = new

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first columns of a slot into another."""
        for part in self._parts():
            for states in part:
                states[target, :, :length] = states[source, :, :length]

    @property
    def bytes_per_slot(self) -> int:
        """Memory that one slot takes; 0 before anything is written."""
        return self.num_bytes // max(1, self._num_slots)

    @property
    def num_bytes(self) -> int:
        """Memory held."""
        return sum(states.nbytes for part in self._parts() for states in part)

    def _parts(self) -> tuple[ByLayer, ByLayer]:
        return self.keys, self.values

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        heads, _, dim = like.shape
        return like.new_zeros(self._num_slots, heads, self._capacity, dim)

    def _resize(self, num_slots: int, capacity: int) -> None:
        """Make room, layer by layer; where memory ends, what is there stays good."""
        for part in self._parts():
            for layer, old in enumerate(part):
                num, heads, width, dim = old.shape
                if num < num_slots or width < capacity:
                    new = old.new_zeros(max(num, num_slots), heads, max(width, capacity), dim)
                    new[:num, :, :width] = old
                    part[layer] = new


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
