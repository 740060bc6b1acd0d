"""Count draws of a segment that equal, or nearly equal, an earlier draw of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def count_repeats(ids: tuple[int, ...], earlier: Collection[tuple[int, ...]]) -> dict[str, int]:
    """Return whether a draw equals, or nearly equals, an earlier draw of its segment.

    Returns:
        Counts, by the field names of `Usage`.
    """
    return {
        "num_repeated_draws": int(ids in earlier),
        "num_similar_draws": int(any(is_similar(ids, other) for other in earlier)),
    }


def is_similar(ids: Sequence[int], others: Sequence[int]) -> bool:
    """Return whether two draws differ in at most one position in eight."""
    num_left = max(len(ids), len(others)) // 8 - abs(len(ids) - len(others))
    if num_left < 0:
        return False
    for own, other in zip(ids, others, strict=False):
        if own != other:
            num_left -= 1
            if num_left < 0:  # most draws differ early, so this rarely reads them to the end
                return False
    return True
