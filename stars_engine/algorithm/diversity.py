"""Draws that repeat each other: rejecting one draws the same again."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def count_repeats(ids: tuple[int, ...], earlier: Collection[tuple[int, ...]]) -> dict[str, int]:
    """Count a draw that equals, or nearly equals, an earlier one of its segment.

    Returns:
        Amounts by the names of `Usage`.
    """
    return {
        "num_repeated_draws": int(ids in earlier),
        "num_similar_draws": int(any(is_similar(ids, other) for other in earlier)),
    }


def is_similar(ids: Sequence[int], others: Sequence[int]) -> bool:
    """Whether two draws differ in at most one position of eight."""
    num_left = max(len(ids), len(others)) // 8 - abs(len(ids) - len(others))
    if num_left < 0:
        return False
    for own, other in zip(ids, others, strict=False):
        if own != other:
            num_left -= 1
            if num_left < 0:  # most differ early: the rest need not be looked at
                return False
    return True
