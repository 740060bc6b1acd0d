"""A thread for calls of native code, which may be long and cannot be interrupted."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, TypeVar

from stars_engine.problems import Interrupted
from stars_engine.threads import process_exit
from stars_engine.threads.priority import lower_priority

Value = TypeVar("Value")

_Work = tuple[Future[Any], Callable[[], Any]]


class BackgroundThread:
    """Runs functions in order, on a thread of low priority that starts with the first one.

    The end of the process does not wait for it, unlike for an executor of `concurrent.futures`. The
    thread ends after its current function when this object is closed or garbage-collected.

    Args:
        name: The name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name, self._lock = name, Lock()
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()
        self._thread: Thread | None = None
        process_exit.register(self)
        weakref.finalize(self, self._queue.put, None).atexit = False

    @property
    def threads(self) -> list[Thread]:
        """The thread, while it is alive."""
        thread = self._thread
        return [thread] if thread is not None and thread.is_alive() else []

    def submit(self, function: Callable[[], Value]) -> Future[Value]:
        """Return a future of the value of a function; if it is cancelled in time, nothing runs."""
        future: Future[Value] = Future()
        with self._lock:
            if self._thread is None:
                self._thread = Thread(
                    target=_run, args=(self._queue,), name=self._name, daemon=True
                )
                self._thread.start()
        self._queue.put((future, function))
        return future

    def close(self, *, wait: bool = False, at_once: bool = False) -> None:
        """End the thread after its current function; what is queued behind it never runs."""
        self._queue.put(None)


def _run(queue: SimpleQueue[_Work | None]) -> None:
    lower_priority()
    with suppress(Interrupted):  # the process is exiting
        while (work := queue.get()) is not None:
            future, function = work
            if future.set_running_or_notify_cancel():
                _resolve(future, function)
            del work, future, function  # nothing of it lives on while the thread waits


def _resolve(future: Future[Any], function: Callable[[], Any]) -> None:
    try:
        value = function()
    except BaseException as error:  # noqa: BLE001 - whoever waits gets it
        future.set_exception(error)
    else:
        future.set_result(value)
