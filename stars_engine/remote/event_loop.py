"""An event loop on its own thread, for the coroutines of an HTTP client."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from threading import Lock, Thread
from typing import Any


class LoopTimeoutError(TimeoutError):
    """An awaitable exceeded its timeout, and was cancelled."""


class ClientLoop:
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
        self._finalizer: weakref.finalize[..., ClientLoop] | None = None

    def run(self, awaitable: Awaitable[Any], *, timeout_s: float | None = None) -> Any:
        """Wait for a result.

        Raises:
            LoopTimeoutError: The awaitable exceeded the timeout, and was cancelled.
        """
        return self.submit(awaitable, timeout_s=timeout_s).result()

    def submit(self, awaitable: Awaitable[Any], *, timeout_s: float | None = None) -> Future[Any]:
        """Start an awaitable; return a future of its result. Cancelling it cancels the awaitable.

        Callbacks of the future run on the loop's thread.
        """
        with self._lock:  # never between stopping one loop and starting the next
            loop = self._started()
            return asyncio.run_coroutine_threadsafe(_within(awaitable, timeout_s), loop)

    def close(self, last: Callable[[], Awaitable[object]] | None = None) -> None:
        """Cancel running awaitables, run a last one if there is one, and end the thread.

        This does not wait, so it may be called on any thread.
        """
        with self._lock:
            loop, self._loop = self._loop, None
            if loop is None:
                return
            assert self._finalizer is not None
            self._finalizer.detach()
            if last is None:
                _stop(loop)
            else:
                asyncio.run_coroutine_threadsafe(_end(last, loop), loop)

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            Thread(target=_run, args=(self._loop,), name=self._name, daemon=True).start()
            self._finalizer = weakref.finalize(self, _stop, self._loop)
            self._finalizer.atexit = False
        return self._loop


async def _within(awaitable: Awaitable[Any], timeout_s: float | None) -> Any:
    timer = asyncio.timeout(timeout_s)
    try:
        async with timer:
            return await awaitable
    except TimeoutError:
        if timer.expired():
            raise LoopTimeoutError from None
        raise


async def _end(last: Callable[[], Awaitable[object]], loop: asyncio.AbstractEventLoop) -> None:
    others = asyncio.all_tasks(loop) - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    try:
        await last()
    finally:
        loop.stop()


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
