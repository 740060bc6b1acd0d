"""Size classes of cache slots, in tokens. They are few, so that slots can be reused."""

from __future__ import annotations

from itertools import count

_MIN_CAPACITY = 64  # tokens


def slot_capacity(length: int) -> int:
    """Return the capacity of the slot allocated for a prefix that is about to grow."""
    return capacity_for(length + max(16, length // 8))


def capacity_for(length: int) -> int:
    """Return the smallest capacity for so many tokens: 64, 96, 128, 192, 256, 384, ..."""
    for power in count():
        for capacity in (_MIN_CAPACITY << power, 3 * (_MIN_CAPACITY // 2) << power):
            if capacity >= length:
                return capacity
    raise AssertionError
