"""Futures between the engine's thread and its callers; either may give up at any time."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from threading import RLock, Thread
from typing import Any, TypeVar

from stars_engine.errors import Interrupted
from stars_engine.protocols import read_optional
from stars_engine.runtime.forks import check_process

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

CALLBACKS = "stars-callbacks"  # name of threads


class RequestFuture(Future[Value]):
    """A future that a caller waits for.

    `cancel` notifies `concurrent.futures.wait` and `as_completed` at once. Ordinary futures notify
    them when an executor picks them up, which never happens here. In a forked process, waiting for
    the future raises an error.

    Callbacks are third-party code, which may block or exit. They run on a thread that exists as
    long as they do.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pid = os.getpid()
        self._notifying = RLock()  # reentrant, because callbacks may cancel again
        self._notified = False
        self._callbacks: deque[Callable[[Future[Value]], object]] | None = None

    def add_done_callback(self, fn: Callable[[Future[Value]], object]) -> None:
        """See `Future.add_done_callback`; the callback runs on a thread of this future."""
        if self.done() or _is_of_asyncio(fn):
            super().add_done_callback(fn)
            return
        with self._notifying:
            is_first = self._callbacks is None
            self._callbacks = deque() if self._callbacks is None else self._callbacks
            self._callbacks.append(fn)
        if is_first:
            super().add_done_callback(_start_callbacks)

    def when_done(self, fn: Callable[[Future[Value]], object]) -> None:
        """Call a short function of the engine as soon as the future is done."""
        super().add_done_callback(fn)

    def run_callbacks(self) -> None:
        """Run the callbacks of a future that is done, in the order in which they were added."""
        while True:
            with self._notifying:
                if not self._callbacks:
                    self._callbacks = None
                    return
                callback = self._callbacks.popleft()
            try:
                callback(self)
            except Interrupted:
                return  # the process is exiting
            except BaseException:
                logger.exception("A callback of a future failed")

    def cancel(self) -> bool:
        """See `Future.cancel`, and `result`."""
        self._check_process()
        cancelled = super().cancel()
        if cancelled:
            with self._notifying:
                if not self._notified:
                    self._notified = True
                    self.set_running_or_notify_cancel()
        return cancelled

    def result(self, timeout: float | None = None) -> Value:
        """See `Future.result`.

        Raises:
            EngineForkedError: A forked process inherited the future before it was done.
        """
        self._check_process()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """See `Future.exception`, and `result`."""
        self._check_process()
        return super().exception(timeout)

    def _check_process(self) -> None:
        if self._state != "FINISHED":  # without its lock, which a fork may have inherited locked
            check_process(self._pid)


def _start_callbacks(future: Future[Any]) -> None:
    assert isinstance(future, RequestFuture)
    Thread(target=future.run_callbacks, name=CALLBACKS, daemon=True).start()


def _is_of_asyncio(callback: object) -> bool:
    """Whether a callback was added by `asyncio.wrap_future`, which only wakes an event loop."""
    return bool(read_optional(callback, "__module__") == "asyncio.futures")
