"""A block: the keys and values of several slots of one capacity."""

from __future__ import annotations

import torch

ByLayer = list[torch.Tensor]


class Block:
    """Tensors of some slots of one capacity.

    Attributes:
        num_slots: How many.
        capacity: Tokens of each.
        keys: By layer, `(num_slots, kv_heads, capacity, head_dim)`; empty before the first write.
        values: Like `keys`.
    """

    def __init__(self, num_slots: int, capacity: int) -> None:
        self.num_slots, self.capacity = num_slots, capacity
        self.keys: ByLayer = []
        self.values: ByLayer = []

    @property
    def num_bytes(self) -> int:
        """Memory allocated."""
        return sum(states.nbytes for part in self.parts() for states in part)

    def parts(self) -> tuple[ByLayer, ByLayer]:
        """Return keys and values."""
        return self.keys, self.values

    def allocate(self, like: tuple[ByLayer, ByLayer]) -> None:
        """Allocate tensors of the same heads, dimensions, type and device as the given ones."""
        # Zeros: what a mask hides is multiplied by 0, and must not be nan.
        self.keys, self.values = (
            [
                new.new_zeros(self.num_slots, new.shape[0], self.capacity, new.shape[2])
                for new in part
            ]
            for part in like
        )
