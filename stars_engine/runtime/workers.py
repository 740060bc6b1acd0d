"""Other people's code, which may be slow or hang, on threads of its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from queue import SimpleQueue
from threading import Event, Lock, Thread, current_thread

logger = logging.getLogger(__name__)


class Task:
    """Work for one of the workers.

    Args:
        work: What to do; gets the task, and handles its own errors.
        timeout_s: Seconds it may take once it has begun; None for as long as it likes.
        on_timeout: Called with the task, on the thread that checks, when it takes longer.
        is_wanted: Asked when it could begin.
    """

    def __init__(
        self,
        work: Callable[[Task], None],
        *,
        timeout_s: float | None,
        on_timeout: Callable[[Task], None],
        is_wanted: Callable[[], bool],
    ) -> None:
        self.work, self.timeout_s, self.on_timeout = work, timeout_s, on_timeout
        self.is_wanted = is_wanted
        self.started_s: float | None = None
        self.worker: Thread | None = None
        self.ended = False
        self.num_sleeps = 0

    def sleep(self, closing: Event, seconds: float) -> None:
        """Wait between two calls of the work, which takes none of its time.

        Args:
            closing: Ends the wait.
            seconds: How long.
        """
        self.num_sleeps += 1
        self.started_s = None
        closing.wait(seconds)
        self.started_s = time.monotonic()

    def remaining_s(self) -> float | None:
        """Seconds until it is overdue, at least; None if it never is."""
        if self.timeout_s is None:
            return None
        if self.started_s is None:
            return self.timeout_s
        return self.started_s + self.timeout_s - time.monotonic()


class Workers:
    """A bounded pool of daemon threads.

    A task that is overdue is written off: its thread cannot be stopped, but is replaced, so that
    those behind it do not wait for ever.

    Args:
        name: Of the threads.
        max_workers: Tasks done at one time.

    Attributes:
        closing: Set when the threads are to end.
    """

    def __init__(self, name: str, max_workers: int) -> None:
        self._name, self._max_workers = name, max_workers
        self._queue: SimpleQueue[Task | None] = SimpleQueue()
        self._threads: list[Thread] = []
        self._lock = Lock()
        self._outstanding: list[Task] = []
        self.closing = Event()

    def submit(self, task: Task) -> None:
        """Have a task done."""
        self._outstanding = [other for other in self._outstanding if not other.ended]
        self._outstanding.append(task)
        self._queue.put(task)
        if len(self._threads) < min(self._max_workers, len(self._outstanding)):
            self._start_thread()

    def write_off_overdue(self) -> float | None:
        """Give up tasks that take too long.

        Returns:
            Seconds until another can be overdue; None if none can.
        """
        self._outstanding = [task for task in self._outstanding if not task.ended]
        soonest = None
        for task in self._outstanding:
            remaining = task.remaining_s()
            if remaining is not None and remaining <= 0:
                self._write_off(task)
            elif remaining is not None and (soonest is None or remaining < soonest):
                soonest = remaining
        return soonest

    def close(self) -> None:
        """Have the threads end when all they were given is done; nothing is tried again."""
        self.closing.set()
        for _ in self._threads:
            self._queue.put(None)

    def join(self, timeout_s: float) -> None:
        """Wait a little for threads that are to end."""
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                logger.warning("%s is still busy in a reward and is left behind", thread.name)

    def _start_thread(self) -> None:
        thread = Thread(target=self._run, name=f"stars-{self._name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _run(self) -> None:
        while (task := self._queue.get()) is not None:
            with self._lock:
                task.worker = current_thread()
                task.started_s = time.monotonic()
            try:
                if task.is_wanted():
                    task.work(task)
            except BaseException:
                logger.exception("%s goes on after an error", current_thread().name)
            with self._lock:
                written_off, task.ended = task.ended, True
            if written_off:
                return  # another has taken this thread's place

    def _write_off(self, task: Task) -> None:
        with self._lock:
            if task.ended:
                return
            task.ended = True
        logger.warning("a reward took longer than %s s and was given up", task.timeout_s)
        self._threads = [thread for thread in self._threads if thread is not task.worker]
        self._start_thread()
        task.on_timeout(task)
