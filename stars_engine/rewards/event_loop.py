"""An event loop on its own thread, for third-party coroutines."""

from __future__ import annotations

import asyncio
import inspect
import logging
import weakref
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar, copy_context
from functools import partial
from threading import Event, Lock, Thread
from typing import Any

from stars_engine.errors import Interrupted
from stars_engine.rewards.failures import RewardTimeoutError
from stars_engine.rewards.loop_tasks import LoopCall, current_call, protect_tasks

logger = logging.getLogger(__name__)

OVERDUE_S = 0.5  # after a timeout: what a loop may take to cancel a call, and then to respond
GRACE_S = 4 * OVERDUE_S  # after a timeout, `EventLoop.run` has ended
_MAX_BLOCKED = 16  # loops
_MAX_MOVES = _MAX_BLOCKED  # of a call whose loop is blocked by another one
_MAX_CANCELLED = 2  # times that a call is made again because something else cancelled it

# Takes how many seconds a call on this thread may take from now on; None for no limit.
set_time_limit: ContextVar[Callable[[float | None], None]] = ContextVar(
    "set_time_limit", default=lambda _: None
)

# Takes what ends the call on this thread if its result is not needed any more.
set_cancel: ContextVar[Callable[[Callable[[], object]], None]] = ContextVar(
    "set_cancel", default=lambda _: None
)


class EventLoop:
    """Runs awaitables for any number of threads on one event loop.

    There is one loop because a client that is reused between calls is bound to the loop on which it
    was first used. The thread starts with the first call, and ends with `close` or when the object
    is collected.

    An awaitable may block the loop. When a call is overdue for that reason, a new loop replaces the
    blocked one. The other calls on it are made again on the new loop, with their whole time.

    The code of one call cannot cancel tasks of another. A call that is cancelled by nobody known,
    such as a thread that a reward started, is made again: once on the same loop, and then on a loop
    of its own, where nobody finds its tasks.

    A call whose result is not needed any more is cancelled. If it blocks its loop, a new loop
    replaces that one, too.

    Args:
        name: The name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = Lock()
        self._current: _LoopThread | None = None
        self._alone: list[_LoopThread] = []  # for one call each
        self._blocked: list[_LoopThread] = []

    def run(self, call: Callable[[], Awaitable[Any]], *, timeout_s: float | None) -> Any:
        """Await what a call returns.

        Args:
            call: Returns the awaitable. Called again if its loop was blocked by another call, or if
                something else than its own code cancelled it.
            timeout_s: Seconds it may take; None for no limit.

        Raises:
            RewardTimeoutError: The awaitable exceeded the timeout, and was cancelled.
        """
        with ExitStack() as at_end:
            return self._run(call, timeout_s, at_end)

    def _run(
        self, call: Callable[[], Awaitable[Any]], timeout_s: float | None, at_end: ExitStack
    ) -> Any:
        wait_s = None if timeout_s is None else timeout_s + OVERDUE_S
        alone: _LoopThread | None = None
        num_cancelled = 0
        unwanted = Event()
        for _ in range(1 + _MAX_MOVES):
            set_time_limit.get()(None if timeout_s is None else timeout_s + GRACE_S)
            awaitable = call()
            with self._lock:  # never between stopping one loop and starting the next
                try:
                    loop = self._started() if alone is None or alone.ended else alone
                except RuntimeError:
                    _close(awaitable)
                    raise
                future, submitted = loop.submit(awaitable, timeout_s)
            set_cancel.get()(partial(_give_up, future, unwanted))
            try:
                return _result_of(future, wait_s)
            except CancelledError:
                num_cancelled += 1
                self._retire_if_blocked(loop, unwanted)
                may_repeat = num_cancelled <= _MAX_CANCELLED and not loop.stopping
                is_moved = loop.retired or (submitted.is_cancelled and may_repeat)
                if unwanted.is_set() or not is_moved:
                    raise
                if num_cancelled == _MAX_CANCELLED:
                    alone = at_end.enter_context(self._for_one_call())
                continue
            except TimeoutError:
                if future.done():  # just now, or the reward raised this
                    return _result_of(future, 0)
            is_blocking, is_blocked = loop.is_running(future), not loop.responds()
            if is_blocked:
                self._retire(loop)
            future.cancel()
            if is_blocking or not is_blocked:
                break
        raise RewardTimeoutError(timeout_s)

    @contextmanager
    def _for_one_call(self) -> Iterator[_LoopThread]:
        """Start a loop that ends with the context."""
        loop = _LoopThread(self._name)
        with self._lock:
            self._alone.append(loop)
        try:
            yield loop
        finally:
            with self._lock:
                self._alone.remove(loop)
            loop.stop()

    def close(self) -> None:
        """Cancel running awaitables and end the thread."""
        with self._lock:
            loops, self._current = [*self._alone, self._current], None
        for loop in loops:
            if loop is not None:
                loop.stop()

    @property
    def threads(self) -> list[Thread]:
        """Threads that are alive, those of blocked loops included."""
        with self._lock:
            loops = [*self._blocked, *self._alone, self._current]
        return [loop.thread for loop in loops if loop is not None and loop.thread.is_alive()]

    def _started(self) -> _LoopThread:
        """Return the loop; start one if there is none, or if it has ended."""
        self._blocked = [loop for loop in self._blocked if loop.thread.is_alive()]
        if self._current is None or self._current.ended:
            if len(self._blocked) >= _MAX_BLOCKED:
                raise RuntimeError(
                    f"{len(self._blocked)} event loops of this reward are blocked by calls that "
                    "do not await. Hint: use asynchronous clients, or a function without `async`"
                )
            self._current = _LoopThread(self._name)
            weakref.finalize(self, self._current.stop).atexit = False
        return self._current

    def _retire_if_blocked(self, loop: _LoopThread, unwanted: Event) -> None:
        """Replace a loop that a call may block whose result is not needed any more."""
        if unwanted.is_set() and not loop.responds():
            self._retire(loop)

    def _retire(self, loop: _LoopThread) -> None:
        """Replace a blocked loop; calls on it are made again, except the one that blocks it."""
        with self._lock:
            if self._current is loop:
                self._current = None
            if loop not in self._blocked:
                self._blocked.append(loop)
        loop.retire()


class _LoopThread:
    """One event loop and its thread.

    Attributes:
        thread: The thread.
        retired: Whether its calls are made again on another loop.
        stopping: Whether it was asked to end.
        ended: Whether it runs nothing any more.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        protect_tasks(self._loop)
        self._tasks: dict[Future[Any], list[asyncio.Task[Any] | None]] = {}
        self.stopping = self.retired = self.ended = False
        self.thread = Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def submit(
        self, awaitable: Awaitable[Any], timeout_s: float | None
    ) -> tuple[Future[Any], LoopCall]:
        """Start to await something; return a future of its result, and the call."""
        tasks: list[asyncio.Task[Any] | None] = []
        call = LoopCall()

        async def run() -> Any:
            if call.ended:  # cancelled while another call blocked the loop
                raise asyncio.CancelledError
            tasks.append(asyncio.current_task())
            return await _within(awaitable, timeout_s)

        context = copy_context()
        context.run(current_call.set, call)
        future = context.run(asyncio.run_coroutine_threadsafe, run(), self._loop)
        self._tasks[future] = tasks
        future.add_done_callback(lambda _: setattr(call, "ended", True))
        future.add_done_callback(self._forget)
        future.add_done_callback(lambda _: None if tasks else _close(awaitable))
        if self.ended:  # meanwhile
            future.cancel()
        return future, call

    def is_running(self, future: Future[Any]) -> bool:
        """Whether the loop is executing the code of a call at this moment."""
        return asyncio.current_task(self._loop) in self._tasks.get(future, [])

    def responds(self) -> bool:
        """Whether the loop is not blocked."""
        responded = Event()
        try:
            self._loop.call_soon_threadsafe(responded.set)
        except RuntimeError:  # it has ended
            return False
        return responded.wait(OVERDUE_S)

    def retire(self) -> None:
        """Cancel all calls except the one that blocks the loop; end after that one."""
        self.retired = True
        for future in tuple(self._tasks):
            if not self.is_running(future):
                future.cancel()
        if not self._tasks:
            self.stop()

    def stop(self) -> None:
        """Cancel all calls and end the thread."""
        self.stopping = True
        with suppress(RuntimeError):  # the loop has already ended
            self._loop.call_soon_threadsafe(self._loop.stop)

    def _forget(self, future: Future[Any]) -> None:
        self._tasks.pop(future, None)
        if self.retired and not self._tasks:
            self.stop()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._run_until_stopped()
            tasks = asyncio.all_tasks(self._loop)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        except Interrupted:
            pass  # the process is exiting
        except Exception:
            logger.exception("The event loop of a reward ended; the next call starts another")
        finally:
            self.retired = self.retired or not self.stopping
            self.ended = True
            with suppress(Exception):  # a reward may have broken it
                self._loop.close()
            for future in tuple(self._tasks):
                future.cancel()

    def _run_until_stopped(self) -> None:
        """Run the loop, whatever the code of rewards does to it."""
        while not self.stopping and not self._loop.is_closed():
            try:
                self._loop.run_forever()
            except (KeyboardInterrupt, SystemExit):
                # A task that a reward has started raised it. Whoever awaits that task gets it, too.
                logger.warning("A task of a reward tried to exit", exc_info=True)


class _ExitedError(Exception):
    """Carries an error that would end the loop."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


async def _within(awaitable: Awaitable[Any], timeout_s: float | None) -> Any:
    timer = asyncio.timeout(timeout_s)
    try:
        async with timer:
            return await awaitable
    except TimeoutError:
        if timer.expired():
            raise RewardTimeoutError(timeout_s) from None
        raise
    except (KeyboardInterrupt, SystemExit) as error:
        raise _ExitedError(error) from None


def _give_up(future: Future[Any], unwanted: Event) -> None:
    """End a call whose result is not needed any more."""
    unwanted.set()
    future.cancel()


def _close(awaitable: Awaitable[Any]) -> None:
    """Close what is never awaited; otherwise Python warns of it."""
    if inspect.iscoroutine(awaitable):
        with suppress(ValueError):  # it has started meanwhile
            awaitable.close()


def _result_of(future: Future[Any], timeout_s: float | None) -> Any:
    try:
        return future.result(timeout_s)
    except _ExitedError as exited:
        raise exited.error from None
