"""An event loop on its own thread, for the coroutines of an HTTP client."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from threading import Lock, Thread
from typing import Any


class ClientLoop:
    """Runs coroutines for any number of threads on one event loop.

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

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Wait for a result."""
        return self.submit(coroutine).result()

    def submit(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Start a coroutine; return a future of its result. Cancelling it cancels the coroutine.

        Callbacks of the future run on the loop's thread.
        """
        with self._lock:  # never between stopping one loop and starting the next
            loop = self._started()
            return asyncio.run_coroutine_threadsafe(coroutine, loop)

    def close(self, last: Callable[[], Awaitable[object]] | None = None) -> None:
        """Cancel running coroutines, run a last one if there is one, and end the thread.

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
