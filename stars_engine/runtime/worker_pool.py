"""Other people's code, which may be slow or hang, on threads of its own."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from contextvars import ContextVar
from threading import Condition, Event, Thread, current_thread

from stars_engine.errors import Interrupted

logger = logging.getLogger(__name__)

LEAST_HUNG = 16  # threads that may hang, before no others are started in their place

working_for: ContextVar[object] = ContextVar("working_for", default=None)


class Task:
    """Work for one of the workers.

    Args:
        work: What to do; gets the task, and handles its own errors.
        owner: For whom; owners take turns.
        timeout_s: Seconds it may take once it has begun; None for as long as it likes.
        on_timeout: Called with the task, on the thread that checks, when it takes longer.
        is_wanted: Asked when it could begin.
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

    def remaining_s(self, *, stuck: bool) -> float | None:
        """Seconds until it is overdue, at least; None if it never is.

        Args:
            stuck: True if tasks cannot begin any more, so that its time has begun all the same.
        """
        if self.timeout_s is None:
            return None
        started_s = self.queued_s if self.started_s is None and stuck else self.started_s
        if started_s is None:
            return self.timeout_s
        return started_s + self.timeout_s - time.monotonic()


class WorkerPool:
    """A bounded pool of daemon threads.

    Owners take turns, and the further tasks of one that has a task in progress leave a quarter of
    the threads, one at least, to those that have none.

    A task that is overdue is written off: its thread cannot be stopped, but is replaced, so that
    those behind it do not wait for ever. That goes on while not too many threads hang; then fewer
    are left, and with none tasks are overdue without having begun.

    Args:
        name: Of the threads.
        max_workers: Tasks done at one time.
        mark: What `working_for` says on these threads.

    Attributes:
        closing: Set when the threads are to end.
    """

    def __init__(self, name: str, max_workers: int, *, mark: object = None) -> None:
        self._name, self._max_workers, self._mark = name, max_workers, mark
        self._max_hung = max(LEAST_HUNG, 2 * max_workers)
        self._changed = Condition()
        self._queued: dict[object, deque[Task]] = {}  # by owner, the next in turn first
        self._busy: Counter[object] = Counter()  # tasks in progress, by owner
        self._threads: list[Thread] = []
        self._hung: list[Thread] = []
        self._num_idle = 0
        self._outstanding: list[Task] = []
        self.closing = Event()

    @property
    def threads(self) -> list[Thread]:
        """Threads that were begun, also those given up."""
        return [*self._threads, *self._hung]

    def submit(self, task: Task) -> None:
        """Have a task done."""
        with self._changed:
            self._outstanding.append(task)
            self._queued.setdefault(task.owner, deque()).append(task)
            self._wake()

    def write_off_overdue(self) -> float | None:
        """Give up tasks that take too long.

        Returns:
            Seconds until another can be overdue; None if none can.
        """
        overdue, soonest = [], None
        with self._changed:
            self._outstanding = [task for task in self._outstanding if not task.ended]
            stuck = self._capacity == 0
            for task in self._outstanding:
                remaining = task.remaining_s(stuck=stuck)
                if remaining is not None and remaining <= 0:
                    self._write_off(task)
                    overdue.append(task)
                elif remaining is not None and (soonest is None or remaining < soonest):
                    soonest = remaining
        for task in overdue:
            logger.warning("a reward took longer than %s s and was given up", task.timeout_s)
            task.on_timeout(task)
        return soonest

    def close(self) -> None:
        """Have the threads end when all they were given is done; nothing is tried again."""
        with self._changed:
            self.closing.set()
            self._changed.notify_all()

    def join(self, until_s: float) -> None:
        """Wait for threads that are to end, until a time on the monotonic clock."""
        for thread in self.threads:
            thread.join(max(0.0, until_s - time.monotonic()))
            if thread.is_alive():
                logger.warning("%s is still busy in a reward and is left behind", thread.name)

    # --- with the lock ---

    @property
    def _capacity(self) -> int:
        """Threads there may be beside those that hang."""
        self._hung = [thread for thread in self._hung if thread.is_alive()]
        return max(0, self._max_workers - max(0, len(self._hung) - self._max_hung))

    def _wake(self) -> None:
        """Have a thread look for a task, if there is one for it."""
        if self._next_owner() is None:
            return
        if self._num_idle:
            self._changed.notify()
        elif len(self._threads) < self._capacity:
            thread = Thread(target=self._run, name=f"stars-{self._name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _next_owner(self) -> object | None:
        """Return whose task may begin; None if none may."""
        spare = max(1, self._max_workers // 4) if self._max_workers > 1 else 0
        may_have_more = self._busy.total() < self._max_workers - spare
        for owner in self._queued:
            if self._busy[owner] == 0 or may_have_more:
                return owner
        return None

    def _begin_next(self) -> Task | None:
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
        self._busy[task.owner] -= 1
        if not self._busy[task.owner]:
            del self._busy[task.owner]

    def _write_off(self, task: Task) -> None:
        if task.worker is None:  # it never began
            task.ended = True
            self._queued[task.owner].remove(task)
            if not self._queued[task.owner]:
                del self._queued[task.owner]
            return
        self._end(task)
        self._threads = [thread for thread in self._threads if thread is not task.worker]
        self._hung.append(task.worker)
        if self._capacity == 0:
            logger.error("%s: %d calls hang; no more are begun", self._name, len(self._hung))
        self._wake()

    # --- the threads ---

    def _run(self) -> None:
        working_for.set(self._mark)
        while (task := self._take()) is not None:
            try:
                if task.is_wanted():
                    task.work(task)
            except Interrupted:
                return  # the process is ending
            except BaseException:
                logger.exception("%s goes on after an error", current_thread().name)
            with self._changed:
                if task.ended:  # it was written off, and another has taken this thread's place
                    self._hung = [one for one in self._hung if one is not current_thread()]
                    self._wake()
                    return
                self._end(task)
                self._changed.notify()

    def _take(self) -> Task | None:
        """Wait for a task; None when there will be none."""
        with self._changed:
            while True:
                task = self._begin_next()
                if task is not None:
                    return task
                if self.closing.is_set() and not self._queued:
                    self._changed.notify_all()
                    return None
                self._num_idle += 1
                self._changed.wait()
                self._num_idle -= 1
