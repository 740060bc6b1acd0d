"""An event loop on its own thread, for third-party coroutines."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable
from contextlib import suppress
from threading import Lock, Thread
from typing import Any

from stars_engine.rewards.failures import RewardTimeoutError


class EventLoop:
    """Runs awaitables for any number of threads on one event loop.

    There is one loop because a client that is reused between calls is bound to the loop on which it
    was first used. The thread starts with the first call, and ends with `close` or when the object
    is collected.

    Args:
        name: The name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, awaitable: Awaitable[Any], *, timeout_s: float | None) -> Any:
        """Wait for a result.

        Raises:
            RewardTimeoutError: The awaitable exceeded the timeout, and was cancelled.
        """
        with self._lock:  # never between stopping one loop and starting the next
            loop = self._started()
            future = asyncio.run_coroutine_threadsafe(_within(awaitable, timeout_s), loop)
        return future.result()

    def close(self) -> None:
        """Cancel running awaitables and end the thread."""
        with self._lock:
            loop, self._loop = self._loop, None
            if loop is not None:
                _stop(loop)

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            Thread(target=_run, args=(self._loop,), name=self._name, daemon=True).start()
            weakref.finalize(self, _stop, self._loop).atexit = False
        return self._loop


async def _within(awaitable: Awaitable[Any], timeout_s: float | None) -> Any:
    timer = asyncio.timeout(timeout_s)
    try:
        async with timer:
            return await awaitable
    except TimeoutError:
        if timer.expired():
            raise RewardTimeoutError(timeout_s) from None
        raise


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


def _stop(loop: asyncio.AbstractEventLoop) -> None:
    with suppress(RuntimeError):  # the loop has already ended
        loop.call_soon_threadsafe(loop.stop)
