"""Streams of accepted segments, for threads and for event loops."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Self

from stars_engine.errors import StarsError
from stars_engine.runtime.blocking_wait import wait_for
from stars_engine.runtime.forks import check_process
from stars_engine.runtime.request_group import RequestGroup
from stars_engine.types import SegmentEvent


class _Stream:
    """The shared part of both streams: a single reader, and two ways to end."""

    def __init__(self, group: RequestGroup, end_group: Callable[[RequestGroup], None]) -> None:
        assert group.event_queue is not None
        self._group, self._event_queue = group, group.event_queue
        self._end_group = end_group
        self._reader = Lock()
        self._finished = False
        self._pid = os.getpid()

    def cancel(self) -> None:
        """End all answers now; their results arrive as last events, with reason "cancelled"."""
        self._end_group(self._group)

    def __del__(self) -> None:
        # A finalizer can run anywhere, so it must not take the lock of the event queue.
        if os.getpid() == self._pid:
            self._group.cancel()

    def _close(self) -> None:
        self._finished = True
        if os.getpid() == self._pid:
            self._group.cancel()
            self._event_queue.put(None)  # wake a reader in another thread or task

    @contextmanager
    def _reading(self) -> Iterator[None]:
        check_process(self._pid)
        if not self._reader.acquire(blocking=False):
            raise StarsError(
                "two threads or tasks read one stream at the same time; each would get a part of "
                "the text. Hint: use one stream per reader, or one reader that forwards events"
            )
        try:
            yield
        finally:
            self._reader.release()

    def _next_event(self) -> SegmentEvent | None:
        """Return the event that has arrived; None at the end.

        Raises:
            RequestError: A request failed.
        """
        event = None if self._finished else self._event_queue.get()
        if event is None and not self._finished:
            self._finished = True
            if not self._group.future.cancelled():
                self._group.future.result()
        return event


class SegmentStream(_Stream):
    """An iterator over `SegmentEvent`s; their texts add up to the text of each result.

    Emitted text never changes. When all answers have ended, the error of a failed request is
    raised; its `result` holds the emitted text.

    Args:
        group: The request group whose events are streamed.
        end_group: Ends a request group.
    """

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> SegmentEvent:
        if self._finished:
            raise StopIteration
        with self._reading():
            wait_for(self._event_queue.wait())
            event = self._next_event()
        if event is None:
            raise StopIteration
        return event

    def close(self) -> None:
        """Cancel the requests and end the stream, also for a reader in another thread."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()


class AsyncSegmentStream(_Stream):
    """A stream for `async for`; generation starts with the first iteration.

    Args:
        group: The request group whose events are streamed.
        start: Submits the request group.
        end_group: Ends a request group.
    """

    def __init__(
        self,
        group: RequestGroup,
        start: Callable[[], Awaitable[None]],
        end_group: Callable[[RequestGroup], None],
    ) -> None:
        super().__init__(group, end_group)
        self._start = start
        self._started = False

    def __aiter__(self) -> Self:
        return self

    async def prepare(self) -> Self:
        """Start generating now, and wait until the first 1,024 prompts have been read.

        Raises:
            PromptError: One of them is invalid. Nothing is generated.
            ContextOverflowError: A prompt and `max_tokens` exceed the context.
            QueueFullError: The queue is full and `EngineParams.on_full` is "raise".
        """
        with self._reading():
            try:
                await self._ensure_started()
                await asyncio.wrap_future(self._group.prepared)
            except BaseException:
                self._close()
                raise
        return self

    async def _ensure_started(self) -> None:
        if not self._started:
            self._started = True
            await self._start()

    async def __anext__(self) -> SegmentEvent:
        """Return the next event."""
        if self._finished:
            raise StopAsyncIteration
        with self._reading():
            try:
                await self._ensure_started()
                await asyncio.wrap_future(self._event_queue.wait())
            except asyncio.CancelledError:
                self._close()
                raise
            event = self._next_event()
        if event is None:
            raise StopAsyncIteration
        return event

    async def aclose(self) -> None:
        """Cancel the requests and end the stream, also for a reader in another task."""
        self._close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._close()
