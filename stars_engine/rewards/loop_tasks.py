"""Tasks of an event loop that many calls share: the code of one cannot cancel those of another."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from contextvars import Context, ContextVar
from typing import Any

logger = logging.getLogger(__name__)


class LoopCall:
    """One call on an event loop.

    Attributes:
        is_cancelled: Whether something else than its own code has cancelled a task of it.
        ended: Whether it has ended.
    """

    def __init__(self) -> None:
        self.is_cancelled = self.ended = False


current_call: ContextVar[LoopCall | None] = ContextVar("current_call", default=None)


def protect_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Let a loop make tasks that other calls cannot cancel, whatever the code of calls sets."""
    loop.set_task_factory(_new_task)
    loop.set_task_factory = _keep_task_factory  # type: ignore[assignment, method-assign]


class _Task(asyncio.Task[Any]):
    """A task that the code of other calls cannot cancel, as long as its call is in progress.

    Context variables are inherited by what a task starts, so they name the call whose code runs.

    Attributes:
        call: The call that has started it; None for a task of nobody known.
    """

    def __init__(self, *args: Any, context: Context | None = None, **kwargs: Any) -> None:
        super().__init__(*args, context=context, **kwargs)
        named = None if context is None else context.get(current_call)
        self.call = named or _calling()

    def cancel(self, msg: Any = None) -> bool:
        """Cancel the task, unless another call asks for it."""
        call, canceller = self.call, _calling()
        if call is not None and call is not canceller and not call.ended:
            if canceller is not None:
                logger.warning("A reward tried to cancel a task of another call of it")
                return False
            call.is_cancelled = True  # by the engine, or by code that a reward runs elsewhere
        return super().cancel(msg)


def _calling() -> LoopCall | None:
    """Return the call whose code runs on this thread, if any."""
    call = current_call.get()
    if call is None:  # in a context that it has made
        with suppress(RuntimeError):  # no event loop runs on this thread
            task = asyncio.current_task()
            return task.call if isinstance(task, _Task) else None
    return call


def _new_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> _Task:
    return _Task(coroutine, loop=loop, **options)


def _keep_task_factory(_: object) -> None:
    logger.warning("A reward tried to change how its event loop makes tasks; it cannot")
