"""Accepted segments as they come, to a loop in a thread or in an event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Self

from stars_engine.errors import StarsError
from stars_engine.runtime.forks import check_process
from stars_engine.runtime.request_group import RequestGroup
from stars_engine.runtime.waiting import wait_for
from stars_engine.types import SegmentEvent


class _Stream:
    """What both kinds have in common: one reader, and two ways to end."""

    def __init__(self, group: RequestGroup, end: Callable[[RequestGroup], None]) -> None:
        assert group.mailbox is not None
        self._call, self._mailbox = group, group.mailbox
        self._end = end
        self._reader = Lock()
        self._over = False
        self._pid = os.getpid()

    def cancel(self) -> None:
        """End the answers where they stand; their results come as last events, as `cancelled`."""
        self._end(self._call)

    def __del__(self) -> None:
        # Without the mailbox, which has a lock: this may run in the middle of anything.
        if os.getpid() == self._pid:
            self._call.cancel()

    def _close(self) -> None:
        self._over = True
        if os.getpid() == self._pid:
            self._call.cancel()
            self._mailbox.put(None)  # who waits in another thread or task need not wait any more

    @contextmanager
    def _reading(self) -> Iterator[None]:
        check_process(self._pid)
        if not self._reader.acquire(blocking=False):
            raise StarsError(
                "two threads or tasks read one stream at the same time, and each would get a part "
                "of the text. Cure: a stream for each, or one reader that hands events on"
            )
        try:
            yield
        finally:
            self._reader.release()

    def _take(self) -> SegmentEvent | None:
        """Take the event that is there; None at the end.

        Raises:
            RequestError: What went wrong.
        """
        event = None if self._over else self._mailbox.take()
        if event is None and not self._over:
            self._over = True
            if not self._call.future.cancelled():
                self._call.future.result()
        return event


class SegmentStream(_Stream):
    """An iterator over `SegmentEvent`s; texts add up to each result's text.

    Nothing emitted is ever taken back. When all answers have ended, the error of one that failed is
    raised; its `result` holds what was emitted.

    Args:
        group: The call whose events these are.
        end: Has a call end where it stands.
    """

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> SegmentEvent:
        if self._over:
            raise StopIteration
        with self._reading():
            wait_for(self._mailbox.wait())
            event = self._take()
        if event is None:
            raise StopIteration
        return event

    def close(self) -> None:
        """End the work and the stream, also for a reader in another thread."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()


class AsyncSegmentStream(_Stream):
    """The same for `async for`; the work begins with the first step.

    Args:
        group: The call whose events these will be.
        begin: Begins the work.
        end: Has a call end where it stands.
    """

    def __init__(
        self,
        group: RequestGroup,
        begin: Callable[[], Awaitable[None]],
        end: Callable[[RequestGroup], None],
    ) -> None:
        super().__init__(group, end)
        self._begin = begin
        self._begun = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SegmentEvent:
        """Return the next event."""
        if self._over:
            raise StopAsyncIteration
        with self._reading():
            try:
                if not self._begun:
                    self._begun = True
                    await self._begin()
                await asyncio.wrap_future(self._mailbox.wait())
            except asyncio.CancelledError:
                self._close()
                raise
            event = self._take()
        if event is None:
            raise StopAsyncIteration
        return event

    async def aclose(self) -> None:
        """End the work and the stream, also for a reader in another task."""
        self._close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._close()
