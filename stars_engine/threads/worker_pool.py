"""A pool of threads for work that may be slow or hang, such as third-party code."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from contextvars import ContextVar
from threading import Condition, Event, Thread, current_thread

from stars_engine.problems import Interrupted
from stars_engine.threads.priority import lower_priority

logger = logging.getLogger(__name__)

MIN_HUNG = 16  # number of hung threads that are always replaced

current_executor: ContextVar[object] = ContextVar("current_executor", default=None)


class Task:
    """A unit of work for a worker thread.

    Args:
        work: The function to run; takes the task, and handles its own errors.
        owner: The owner of the task; owners are served in turn.
        timeout_s: Maximum duration in seconds; None for no limit.
        on_timeout: Called with the overdue task, on the thread that checks.
        is_wanted: Whether the task is still needed; called before it starts, and from time to time.

    Attributes:
        cancel: Set by work that can be ended early; called when it is not needed any more.
    """

    def __init__(
        self,
        work: Callable[[Task], None],
        *,
        owner: object,
        timeout_s: float | None,
        on_timeout: Callable[[Task], None],
        is_wanted: Callable[[], bool],
    ) -> None:
        self.work, self.owner = work, owner
        self.timeout_s, self.on_timeout = timeout_s, on_timeout
        self.is_wanted = is_wanted
        self.queued_s = time.monotonic()
        self.started_s: float | None = None
        self.worker: Thread | None = None
        self.ended = False
        self.num_sleeps = 0
        self.cancel: Callable[[], object] | None = None

    def sleep(self, closing: Event, seconds: float) -> None:
        """Wait between two attempts; the wait does not count towards the timeout.

        Args:
            closing: Ends the wait when set.
            seconds: Duration of the wait.
        """
        self.num_sleeps += 1
        self.started_s = None
        closing.wait(seconds)
        self.started_s = time.monotonic()

    def set_cancel(self, cancel: Callable[[], object]) -> None:
        """Set how to end the work early."""
        self.cancel = cancel

    def set_time_limit(self, seconds: float | None) -> None:
        """Allow so many seconds from now on; None for no limit."""
        self.timeout_s, self.started_s = seconds, time.monotonic()

    def remaining_s(self, *, stuck: bool) -> float | None:
        """Return the minimum number of seconds until the task is overdue; None for no limit.

        Args:
            stuck: Whether tasks cannot start any more, so the time in the queue counts, too.
        """
        if self.timeout_s is None:
            return None
        started_s = self.queued_s if self.started_s is None and stuck else self.started_s
        if started_s is None:
            return self.timeout_s
        return started_s + self.timeout_s - time.monotonic()


class WorkerPool:
    """A bounded pool of daemon threads.

    Owners are served in turn. A quarter of the threads, at least one, is reserved for owners that
    have no task in progress.

    An overdue task is given up. Its thread cannot be stopped, but is replaced, so the tasks behind
    it are not starved. If too many threads hang, they are no longer replaced and the pool shrinks.
    If no thread is left, tasks become overdue without starting.

    Args:
        name: Name of the threads.
        max_workers: Maximum number of concurrent tasks.
        mark: Value of `current_executor` on these threads.
        low_priority: Whether other threads run before these where processors are busy.

    Attributes:
        closing: Set when the threads should end.
    """

    def __init__(
        self, name: str, max_workers: int, *, mark: object = None, low_priority: bool = False
    ) -> None:
        self._name, self._max_workers, self._mark = name, max_workers, mark
        self._low_priority = low_priority
        self._max_hung = max(MIN_HUNG, 2 * max_workers)
        self._changed = Condition()
        self._queued: dict[object, deque[Task]] = {}  # by owner, the next in turn first
        self._busy: Counter[object] = Counter()  # number of tasks in progress, by owner
        self._threads: list[Thread] = []
        self._hung: list[Thread] = []
        self._num_idle = 0
        self._outstanding: dict[Task, None] = {}  # in order of submission
        self.closing = Event()

    @property
    def threads(self) -> list[Thread]:
        """All threads, including those that hang."""
        return [*self._threads, *self._hung]

    def submit(self, task: Task) -> None:
        """Submit a task."""
        with self._changed:
            self._outstanding[task] = None
            self._queued.setdefault(task.owner, deque()).append(task)
            self._wake()

    def expire_overdue(self) -> float | None:
        """Give up overdue tasks, and cancel those that are not needed any more.

        Returns:
            Seconds until the next task can be overdue; None if no task has a timeout.
        """
        overdue, soonest = [], None
        with self._changed:
            unwanted = [task for task in self._outstanding if not task.is_wanted()]
            stuck = self._capacity == 0
            for task in list(self._outstanding):
                remaining = task.remaining_s(stuck=stuck)
                if remaining is not None and remaining <= 0:
                    self._expire(task)
                    overdue.append(task)
                elif remaining is not None and (soonest is None or remaining < soonest):
                    soonest = remaining
        for task in unwanted:
            if task.cancel is not None:
                task.cancel()
        for task in overdue:
            logger.warning(
                "%s: a call took longer than %s s and was given up", self._name, task.timeout_s
            )
            task.on_timeout(task)
        return soonest

    def close(self) -> None:
        """End the threads after all queued tasks; failed calls are not retried."""
        with self._changed:
            self.closing.set()
            self._changed.notify_all()

    def join(self, until_s: float) -> None:
        """Join the threads, until a time on the monotonic clock."""
        for thread in self.threads:
            thread.join(max(0.0, until_s - time.monotonic()))
            if thread.is_alive():
                logger.warning("%s is still busy and is abandoned", thread.name)

    # --- call with the lock held ---

    @property
    def _capacity(self) -> int:
        """Maximum number of threads, without those that hang."""
        self._hung = [thread for thread in self._hung if thread.is_alive()]
        return max(0, self._max_workers - max(0, len(self._hung) - self._max_hung))

    def _wake(self) -> None:
        """Wake or start a thread if a task can start."""
        if self._next_owner() is None:
            return
        if self._num_idle:
            self._changed.notify()
        elif len(self._threads) < self._capacity:
            thread = Thread(target=self._run, name=f"stars-{self._name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _next_owner(self) -> object | None:
        """Return the owner whose task may start next; None if there is none."""
        spare = max(1, self._max_workers // 4) if self._max_workers > 1 else 0
        has_spare_threads = self._busy.total() < self._max_workers - spare
        for owner in self._queued:
            if self._busy[owner] == 0 or has_spare_threads:
                return owner
        return None

    def _start_next(self) -> Task | None:
        owner = self._next_owner()
        if owner is None:
            return None
        tasks = self._queued.pop(owner)
        task = tasks.popleft()
        if tasks:
            self._queued[owner] = tasks  # behind the others
        self._busy[owner] += 1
        task.worker, task.started_s = current_thread(), time.monotonic()
        self._wake()
        return task

    def _end(self, task: Task) -> None:
        task.ended = True
        del self._outstanding[task]
        self._busy[task.owner] -= 1
        if not self._busy[task.owner]:
            del self._busy[task.owner]

    def _expire(self, task: Task) -> None:
        if task.worker is None:  # it has not started
            task.ended = True
            del self._outstanding[task]
            self._queued[task.owner].remove(task)
            if not self._queued[task.owner]:
                del self._queued[task.owner]
            return
        self._end(task)
        self._threads = [thread for thread in self._threads if thread is not task.worker]
        self._hung.append(task.worker)
        if self._capacity == 0:
            logger.error("%s: %d calls hang; no further calls start", self._name, len(self._hung))
        self._wake()

    # --- the threads ---

    def _run(self) -> None:
        current_executor.set(self._mark)
        if self._low_priority:
            lower_priority()
        while (task := self._wait_for_task()) is not None:
            try:
                if task.is_wanted():
                    task.work(task)
            except Interrupted:
                return  # the process is exiting
            except BaseException:
                logger.exception("%s continues after an error", current_thread().name)
            with self._changed:
                if task.ended:  # it was given up, and this thread was replaced
                    self._hung = [one for one in self._hung if one is not current_thread()]
                    self._wake()
                    return
                self._end(task)
                self._changed.notify()
            del task  # nothing of it lives on while the thread waits

    def _wait_for_task(self) -> Task | None:
        """Wait for a task; return None when the pool is closed and empty."""
        with self._changed:
            while True:
                task = self._start_next()
                if task is not None:
                    return task
                if self.closing.is_set() and not self._queued:
                    self._changed.notify_all()
                    return None
                self._num_idle += 1
                self._changed.wait()
                self._num_idle -= 1
