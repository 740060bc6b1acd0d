"""Answer calls at their deadline while the engine's thread hangs in a model or a reward.

The engine's thread ends overdue requests between two steps. If a step does not return, this thread
gives the callers what was accepted so far. A thread that hangs cannot be stopped; the log names it.
"""

from __future__ import annotations

import heapq
import logging
import sys
import time
import traceback
from collections.abc import Callable
from itertools import count
from threading import Condition, Event, Thread

from stars_engine.runtime.deadline_results import events_at_deadline
from stars_engine.runtime.request_group import RequestGroup, missed_deadline_error
from stars_engine.types import SegmentEvent

logger = logging.getLogger(__name__)

GRACE_S = 0.1  # after a deadline, for the engine's thread to answer
MAX_WAIT_S = 3600.0  # upper bound of a wait, since locks do not accept infinity
READING_S = 0.05  # for reading a text so far as a message; a tokenizer may hang as well
READING_S_PER_ANSWER = 1e-5  # more, since threads of a busy machine wait for each other
READERS = "stars-deadline"  # name of threads


class Watchdog:
    """A thread that watches the deadlines of calls in progress. It runs while there are any.

    Args:
        engine_thread: Returns the engine's thread.
        on_missed: Called with each call before it is answered here, for the engine to end it.
    """

    def __init__(
        self,
        engine_thread: Callable[[], Thread | None],
        on_missed: Callable[[RequestGroup], None],
    ) -> None:
        self._engine_thread, self._on_missed = engine_thread, on_missed
        self._changed = Condition()
        self._numbers = count()
        self._groups: dict[int, RequestGroup] = {}
        self._due: list[tuple[float, int]] = []
        self._thread: Thread | None = None

    def watch(self, group: RequestGroup) -> None:
        """Watch a call until it is done, if it has a deadline."""
        if group.expires_at_s == float("inf"):
            return
        with self._changed:
            number = next(self._numbers)
            self._groups[number] = group
            heapq.heappush(self._due, (group.expires_at_s + GRACE_S, number))
            if self._thread is None:
                self._thread = Thread(target=self._run, name="stars-watchdog", daemon=True)
                self._thread.start()
            self._changed.notify()
        group.future.when_done(lambda _: self._forget(number))

    def _forget(self, number: int) -> None:
        with self._changed:
            self._groups.pop(number, None)
            if len(self._due) > 2 * len(self._groups) + 64:
                self._due = [item for item in self._due if item[1] in self._groups]
                heapq.heapify(self._due)
            self._changed.notify()

    def _run(self) -> None:
        while groups := self._wait():
            readers = [self._start_reading(group) for group in groups]
            until_s = time.monotonic() + READING_S
            for reader in readers:
                # Calls with very many answers are read for longer, and others do not wait for them.
                if not reader.is_read_by(until_s):
                    Thread(target=reader.watch, name=READERS, daemon=True).start()

    def _wait(self) -> list[RequestGroup]:
        """Return the next calls that were not answered in time; none if no call is left."""
        with self._changed:
            while self._groups:
                if found := self._take_due():
                    return found
                if self._due:
                    remaining_s = max(0.0, self._due[0][0] - time.monotonic())
                    self._changed.wait(min(remaining_s, MAX_WAIT_S))
            self._due.clear()
            self._thread = None
            return []

    def _take_due(self) -> list[RequestGroup]:
        """Take the calls that are due now, and forget those that are done."""
        found = []
        while self._due and (
            self._due[0][0] <= time.monotonic() or self._due[0][1] not in self._groups
        ):
            group = self._groups.pop(heapq.heappop(self._due)[1], None)
            if group is not None:
                found.append(group)
        return found

    def _start_reading(self, group: RequestGroup) -> _Reader:
        """Take a call over from the engine's thread, and read its answers on another one."""
        logger.warning(
            "A deadline passed while %s; the caller gets what was accepted",
            where_it_is(self._engine_thread()),
        )
        group.is_taken_over = True
        reader = _Reader(group)
        try:
            self._on_missed(group)
        except Exception:
            logger.exception("Ending a call at its deadline failed")
        Thread(target=reader.read, name=READERS, daemon=True).start()
        return reader


class _Reader:
    """Reads the answers of one call, and fails the call if that hangs."""

    def __init__(self, group: RequestGroup) -> None:
        self._group = group
        self._events: dict[int, SegmentEvent] = {}
        self._num_seen = 0
        self._is_read = Event()
        self._limit_s = READING_S + READING_S_PER_ANSWER * group.num_answers

    def read(self) -> None:
        """Read all answers and complete the call."""
        for index, event in events_at_deadline(self._group):
            self._events[index] = event
        self._is_read.set()
        self._group.complete_at_deadline(self._events)

    def is_read_by(self, until_s: float) -> bool:
        """Wait until a time on the monotonic clock; return whether nothing is left to watch."""
        if self._is_read.wait(max(0.0, until_s - time.monotonic())):
            return True
        return self._limit_s < 2 * READING_S and self._fail_if_stuck()

    def _fail_if_stuck(self) -> bool:
        """Fail the call if no answer was read since the last call of this method."""
        num_read = len(self._events)
        is_stuck = num_read == self._num_seen
        self._num_seen = num_read
        if is_stuck:
            self._group.fail(missed_deadline_error(self._group))
        return is_stuck

    def watch(self) -> None:
        """Wait until all answers are read, or reading hangs."""
        while not self._is_read.wait(self._limit_s):
            if self._fail_if_stuck():
                return


def where_it_is(thread: Thread | None) -> str:
    """Return the name of a thread, and where it is in the code."""
    frame = None if thread is None else sys._current_frames().get(thread.ident or 0)  # noqa: SLF001
    if thread is None or frame is None:
        return "the engine's thread does not run"
    calls = traceback.extract_stack(frame)[-3:]
    code = " > ".join(f"{call.name} ({call.filename}:{call.lineno})" for call in calls)
    return f"thread {thread.name!r} is busy in {code}"
