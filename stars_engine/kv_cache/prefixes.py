"""What rows of token ids begin with alike, and how large a slot they get."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import count

LEAST = 16  # tokens in common that are worth keeping or copying

_LEAST_SLOT = 64  # tokens


def num_common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two rows of one type begin with alike."""
    most = min(len(first), len(second))
    if first[:most] == second[:most]:
        return most
    # Slices compare at the speed of C: halve the range in which they begin to differ.
    return bisect_left(range(most), 1, key=lambda size: first[: size + 1] != second[: size + 1])


def capacity_of_slot(length: int) -> int:
    """Return the capacity of the slot that is taken for so many tokens, and some more."""
    return capacity_for(length + max(16, length // 8))


def capacity_for(length: int) -> int:
    """Return the capacity of a slot for so many tokens: 64, 96, 128, 192, 256, 384, ..."""
    for power in count():
        for capacity in (_LEAST_SLOT << power, 3 * (_LEAST_SLOT // 2) << power):
            if capacity >= length:
                return capacity
    raise AssertionError
