"""An event loop on its own thread, for third-party coroutines."""

from __future__ import annotations

import asyncio
import inspect
import logging
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from threading import Event, Lock, Thread
from typing import Any

from stars_engine.errors import Interrupted
from stars_engine.rewards.failures import RewardTimeoutError

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


class _Call:
    """One call on an event loop.

    Attributes:
        is_cancelled: Whether something else than its own code has cancelled a task of it.
        ended: Whether it has ended.
    """

    def __init__(self) -> None:
        self.is_cancelled = self.ended = False


_current_call: ContextVar[_Call | None] = ContextVar("_current_call", default=None)


class _Task(asyncio.Task[Any]):
    """A task that the code of other calls cannot cancel, as long as its call is in progress.

    Context variables are inherited by what a task starts, so they name the call whose code runs.
    """

    def __init__(self, *args: Any, context: Context | None = None, **kwargs: Any) -> None:
        super().__init__(*args, context=context, **kwargs)
        self._call = _current_call.get() if context is None else context.get(_current_call)

    def cancel(self, msg: Any = None) -> bool:
        """Cancel the task, unless another call asks for it."""
        call, canceller = self._call, _current_call.get()
        if call is not None and call is not canceller and not call.ended:
            if canceller is not None:
                logger.warning("A reward tried to cancel a task of another call of it")
                return False
            call.is_cancelled = True  # by the engine, or by code that a reward runs elsewhere
        return super().cancel(msg)


def _new_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> _Task:
    return _Task(coroutine, loop=loop, **options)


class EventLoop:
    """Runs awaitables for any number of threads on one event loop.

    There is one loop because a client that is reused between calls is bound to the loop on which it
    was first used. The thread starts with the first call, and ends with `close` or when the object
    is collected.

    An awaitable may block the loop. When a call is overdue for that reason, a new loop replaces the
    blocked one. The other calls on it are made again on the new loop, with their whole time. So are
    calls that are cancelled from elsewhere; the code of one call cannot cancel tasks of another.

    Args:
        name: The name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = Lock()
        self._current: _LoopThread | None = None
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
        wait_s = None if timeout_s is None else timeout_s + OVERDUE_S
        num_cancelled = 0
        for _ in range(1 + _MAX_MOVES):
            set_time_limit.get()(None if timeout_s is None else timeout_s + GRACE_S)
            awaitable = call()
            with self._lock:  # never between stopping one loop and starting the next
                try:
                    loop = self._started()
                except RuntimeError:
                    _close(awaitable)
                    raise
                future, submitted = loop.submit(awaitable, timeout_s)
            try:
                return _result_of(future, wait_s)
            except CancelledError:
                num_cancelled += 1
                may_repeat = num_cancelled <= _MAX_CANCELLED and not loop.stopping
                if not loop.retired and not (submitted.is_cancelled and may_repeat):
                    raise
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

    def close(self) -> None:
        """Cancel running awaitables and end the thread."""
        with self._lock:
            loop, self._current = self._current, None
        if loop is not None:
            loop.stop()

    @property
    def threads(self) -> list[Thread]:
        """Threads that are alive, those of blocked loops included."""
        with self._lock:
            loops = [*self._blocked, self._current]
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

    def _retire(self, loop: _LoopThread) -> None:
        """Replace a blocked loop; calls on it are made again, except the one that blocks it."""
        with self._lock:
            if self._current is loop:
                self._current = None
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
        self._loop.set_task_factory(_new_task)
        self._tasks: dict[Future[Any], list[asyncio.Task[Any] | None]] = {}
        self.stopping = self.retired = self.ended = False
        self.thread = Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def submit(
        self, awaitable: Awaitable[Any], timeout_s: float | None
    ) -> tuple[Future[Any], _Call]:
        """Start to await something; return a future of its result, and the call."""
        tasks: list[asyncio.Task[Any] | None] = []
        call = _Call()

        async def run() -> Any:
            tasks.append(asyncio.current_task())
            return await _within(awaitable, timeout_s)

        context = copy_context()
        context.run(_current_call.set, call)
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
