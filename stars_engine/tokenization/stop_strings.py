"""Find stop strings in text, in a time that hardly grows with their number."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import lru_cache


class StopStrings:
    """Stop strings in sorted order, so that those that begin a text are found by bisection.

    Args:
        stops: The stop strings, not empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._sorted = sorted(set(stops))
        self._first_chars = {stop[0] for stop in stops}
        self._longest = max(map(len, stops), default=0)
        # For each, the stop strings that begin it, shortest first, with itself. In sorted order,
        # a string follows those that begin it, and only strings that they begin stand between.
        self._beginnings: list[tuple[str, ...]] = []
        open_ones: list[str] = []
        for stop in self._sorted:
            while open_ones and not stop.startswith(open_ones[-1]):
                open_ones.pop()
            open_ones.append(stop)
            self._beginnings.append(tuple(open_ones))

    def find(self, text: str, start: int = 0, *, ends_after: int = 0) -> int | None:
        """Return where the earliest stop string begins at or after `start`, or None.

        Args:
            text: The text.
            start: The index to search from.
            ends_after: Stop strings that end at or before this index do not count.
        """
        first = max(start, ends_after + 1 - self._longest)
        for index in range(first, len(text)):
            length = self._len_at(text, index) if text[index] in self._first_chars else 0
            if length and index + length > ends_after:
                return index
        return None

    def held_back(self, text: str) -> int:
        """Return the number of final characters of `text` that may begin a stop string."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[start] not in self._first_chars:
                continue
            end = text[start:]
            # The first stop string after `end` begins with it, if any longer one does.
            index = bisect_right(self._sorted, end)
            if index < len(self._sorted) and self._sorted[index].startswith(end):
                return len(end)
        return 0

    def _len_at(self, text: str, index: int) -> int:
        """Return the length of the longest stop string at an index of the text; 0 without one."""
        window = text[index : index + self._longest]
        last = bisect_right(self._sorted, window) - 1
        if last == -1:
            return 0
        beginnings = self._beginnings[last]
        # Those that begin the window come first.
        count = bisect_left(beginnings, 1, key=lambda stop: int(not window.startswith(stop)))
        return len(beginnings[count - 1]) if count else 0


@lru_cache(maxsize=256)
def stop_strings(stops: tuple[str, ...]) -> StopStrings:
    """Return the sorted form of stop strings, kept for the next call."""
    return StopStrings(stops)
