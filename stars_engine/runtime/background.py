"""Threads that prepare large inputs, so that the engine's thread does not wait for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from functools import partial
from threading import Thread
from typing import TypeVar

from stars_engine.problems import is_for_program
from stars_engine.runtime.futures import set_exception, set_result
from stars_engine.runtime.worker_pool import Task, WorkerPool
from stars_engine.threads.give_way import set_pause

Value = TypeVar("Value")

MAX_WORKERS = 2
RUN_S = 0.001  # of a computation in Python, between two pauses
PAUSE_S = 0.006


class UnwantedWorkError(Exception):
    """Ends work whose result is not needed any more."""


class Pauses:
    """Pauses regularly while other threads are busy; see `give_way`.

    Args:
        is_busy: Whether other threads are busy.
        is_wanted: Whether the work goes on.
    """

    def __init__(
        self, is_busy: Callable[[], bool], is_wanted: Callable[[], bool] = lambda: True
    ) -> None:
        self._is_busy, self._is_wanted = is_busy, is_wanted
        self._resumed_s = time.perf_counter()

    def __call__(self) -> None:
        """Pause if the thread has run for a while.

        Raises:
            UnwantedWorkError: The work is not wanted any more.
        """
        if time.perf_counter() - self._resumed_s < RUN_S:
            return
        if not self._is_wanted():
            raise UnwantedWorkError("this work is no longer needed")
        if self._is_busy():
            time.sleep(PAUSE_S)
        self._resumed_s = time.perf_counter()


class Background:
    """A few threads of low priority that tokenize long prompts and compile grammars.

    Args:
        is_busy: Whether the engine's thread has other work, so that the threads give way to it.
    """

    def __init__(self, is_busy: Callable[[], bool]) -> None:
        self._is_busy = is_busy
        self._workers = WorkerPool("prepare", MAX_WORKERS, low_priority=True)

    @property
    def threads(self) -> list[Thread]:
        """All threads."""
        return self._workers.threads

    def submit(self, work: Callable[[], Value], owner: object) -> Future[Value]:
        """Return a future of the work; owners are served in turn."""
        future: Future[Value] = Future()
        self._workers.submit(
            Task(
                partial(self._run, work, future),
                owner=owner,
                timeout_s=None,
                on_timeout=lambda _: None,
                is_wanted=lambda: not future.cancelled(),
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

    def close(self) -> None:
        """End the threads; work in progress ends where it next gives way."""
        self._workers.close()

    def _run(self, work: Callable[[], Value], future: Future[Value], _: Task) -> None:
        closing = self._workers.closing
        set_pause(Pauses(self._is_busy, lambda: not (future.cancelled() or closing.is_set())))
        try:
            value = work()
        except BaseException as error:
            if is_for_program(error):
                raise
            set_exception(future, error)
        else:
            set_result(future, value)
