"""Work of the engine's thread that is done a few milliseconds at a time, between two steps."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator

IDLE_S = 0.02  # at a time, if there is nothing else to do
MIN_S = 0.002  # at a time beside steps
SHARE = 0.2  # of the time of steps


class TimeSlices:
    """Runs iterators, one item of each in turn, until a time."""

    def __init__(self) -> None:
        self._work: deque[Iterator[None]] = deque()

    @property
    def has_work(self) -> bool:
        """Whether any iterator has not ended."""
        return bool(self._work)

    def add(self, work: Iterator[None]) -> None:
        """Add an iterator whose items are short pieces of work."""
        self._work.append(work)

    def run(self, until_s: float) -> None:
        """Run at least one piece, and further ones until a time on the monotonic clock."""
        while self._work:
            work = self._work.popleft()
            if next(work, "done") != "done":
                self._work.append(work)
            if time.monotonic() >= until_s:
                return


def slice_s(step_s: float | None) -> float:
    """Return how long other work may take after a step of some duration; None without a step."""
    return IDLE_S if step_s is None else max(MIN_S, SHARE * step_s)
