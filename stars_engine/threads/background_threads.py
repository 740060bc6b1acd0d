"""Threads of low priority, for work that the engine's thread should not do itself."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator
from concurrent.futures import Future
from functools import partial
from threading import Thread
from typing import Any, TypeVar

from stars_engine.problems import is_for_program
from stars_engine.threads import process_exit
from stars_engine.threads.future_outcomes import set_exception, set_result
from stars_engine.threads.give_way import set_pause
from stars_engine.threads.pauses import Pauses
from stars_engine.threads.worker_pool import Task, WorkerPool

Value = TypeVar("Value")


class BackgroundThreads:
    """Computes values on a few threads of low priority.

    The end of the process does not wait for them, unlike for an executor of `concurrent.futures`.
    They end when this object is closed or garbage-collected.

    Args:
        name: The name of the threads.
        max_workers: Maximum number of concurrent computations; one keeps their order.
        is_busy: Whether other threads are busy, so that computations in Python give way to them.
    """

    def __init__(
        self, name: str, max_workers: int = 1, is_busy: Callable[[], bool] = lambda: False
    ) -> None:
        self._is_busy = is_busy
        self._workers = WorkerPool(name, max_workers, low_priority=True)
        process_exit.register(self)
        weakref.finalize(self, self._workers.close).atexit = False

    @property
    def threads(self) -> list[Thread]:
        """The threads that are alive."""
        return [thread for thread in self._workers.threads if thread.is_alive()]

    def submit(self, work: Callable[[], Value], owner: object = "") -> Future[Value]:
        """Return a future of the value of a function; owners are served in turn.

        If it is cancelled in time, nothing runs; later, the work ends where it next gives way.
        """
        future: Future[Value] = Future()
        closing = self._workers.closing

        def is_wanted() -> bool:
            return not (future.cancelled() or closing.is_set())

        self._workers.submit(
            Task(
                partial(_run, work, future, Pauses(self._is_busy, is_wanted)),
                owner=owner,
                timeout_s=None,
                on_timeout=lambda _: None,
                is_wanted=is_wanted,
            )
        )
        return future

    def run(
        self, work: Callable[[], Value], owner: object
    ) -> Generator[Future[Value], None, Value]:
        """Yield a future of the work, then return its value."""
        future = self.submit(work, owner)
        yield future
        return future.result()

    def close(self, *, wait: bool = False, at_once: bool = False) -> None:
        """End the threads after their current work, which ends where it next gives way.

        What is queued never runs.
        """
        self._workers.close()


def _run(work: Callable[[], Any], future: Future[Any], pauses: Pauses, _: Task) -> None:
    set_pause(pauses)
    try:
        value = work()
    except BaseException as error:
        if is_for_program(error):
            raise
        set_exception(future, error)
    else:
        set_result(future, value)
    finally:
        set_pause(None)
