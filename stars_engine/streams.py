"""Accepted segments as they come, to a loop in a thread or in an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Self

from stars_engine.runtime.calls import Call, Mailbox
from stars_engine.types import SegmentEvent


class SegmentStream:
    """An iterator over `SegmentEvent`s; texts add up to each result's text.

    Nothing emitted is ever taken back. When all answers have ended, the error of one that failed is
    raised; its `result` holds what was emitted.

    Args:
        call: The call whose events these are.
        end: Has the call end where it stands.
    """

    def __init__(self, call: Call, end: Callable[[], None]) -> None:
        assert call.mailbox is not None
        self._call, self._mailbox = call, call.mailbox
        self._end = end
        self._over = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> SegmentEvent:
        if self._over:
            raise StopIteration
        self._mailbox.wait().result()
        event = self._mailbox.take()
        if event is None:
            self._over = True
            self._call.future.result()  # raises what went wrong
            raise StopIteration
        return event

    def cancel(self) -> None:
        """End the answers where they stand; their results come as last events, as `cancelled`."""
        self._end()

    def close(self) -> None:
        """End the work and the stream."""
        self._over = True
        self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class AsyncSegmentStream:
    """The same for `async for`; the work begins with the first step.

    Args:
        submit: Begins the work; gives the call, and what has it end where it stands.
    """

    def __init__(
        self, submit: Callable[[Mailbox], Awaitable[Call]], end: Callable[[Call], None]
    ) -> None:
        self._submit, self._end = submit, end
        self._mailbox = Mailbox()
        self._call: Call | None = None
        self._over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SegmentEvent:
        """Return the next event."""
        if self._over:
            raise StopAsyncIteration
        if self._call is None:
            self._call = await self._submit(self._mailbox)
        try:
            await asyncio.wrap_future(self._mailbox.wait())
        except asyncio.CancelledError:
            await self.aclose()
            raise
        event = self._mailbox.take()
        if event is None:
            self._over = True
            self._call.future.result()
            raise StopAsyncIteration
        return event

    def cancel(self) -> None:
        """End the answers where they stand; their results come as last events, as `cancelled`."""
        if self._call is not None:
            self._end(self._call)

    async def aclose(self) -> None:
        """End the work and the stream."""
        self._close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._close()

    def __del__(self) -> None:
        self._close()

    def _close(self) -> None:
        self._over = True
        if self._call is not None:
            self._call.cancel()
