"""The queue through which the events of a streamed call reach its reader."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from threading import Lock

from stars_engine.threads.future_outcomes import set_result
from stars_engine.types import SegmentEvent


class EventQueue:
    """A queue of events for one reader, in a thread or in an event loop; None marks the end.

    What is put behind the end is dropped, except for another end.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._items: deque[SegmentEvent | None] = deque()
        self._waiter: Future[None] | None = None
        self._ended = False

    def put(self, item: SegmentEvent | None) -> None:
        """Add an item and wake the reader."""
        with self._lock:
            if self._ended and item is not None:
                return
            self._ended = self._ended or item is None
            self._items.append(item)
            waiter, self._waiter = self._waiter, None
        if waiter is not None:
            set_result(waiter, None)

    def wait(self) -> Future[None]:
        """Return a future that is done once an item is available."""
        waiter: Future[None] = Future()
        with self._lock:
            if not self._items:
                self._waiter = waiter
                return waiter
        waiter.set_result(None)
        return waiter

    def get(self) -> SegmentEvent | None:
        """Remove and return the next item; call this only after `wait`."""
        return self._items.popleft()
