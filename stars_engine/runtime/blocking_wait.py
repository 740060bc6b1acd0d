"""Block a caller's thread until a future is done, unless nobody can receive the result any more."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from stars_engine.errors import EngineClosedError

Value = TypeVar("Value")

CHECK_S = 0.5  # between two checks whether `asyncio.run` has failed, and two calls of `meanwhile`


def wait_for(future: Future[Value], meanwhile: Callable[[], None] | None = None) -> Value:
    """Return the result of a future.

    When `asyncio.run` ends, it joins its threads (`asyncio.to_thread`), even after an error such as
    Ctrl-C. A thread that still waits would keep the program alive, although no task is left that
    could receive the result. So such a thread stops waiting.

    Args:
        future: The future.
        meanwhile: Called twice a second while waiting, to show progress.

    Raises:
        EngineClosedError: `asyncio.run` failed while its thread waited here.
    """
    of_asyncio = threading.current_thread().name.startswith("asyncio_")
    while (of_asyncio or meanwhile is not None) and not future.done():
        wait([future], timeout=CHECK_S)
        if meanwhile is not None:
            meanwhile()
        if of_asyncio and not future.done() and _asyncio_run_failed():
            raise EngineClosedError(
                "asyncio.run raised an error while this thread waited for the engine"
            )
    return future.result()


def _asyncio_run_failed() -> bool:
    """Whether the main thread is leaving `asyncio.run` because of an error.

    This is so if it is inside `Runner.__exit__`, and handles an exception that was raised in the
    `with` statement of that runner, not an earlier one.
    """
    ident = threading.main_thread().ident or 0
    frame = sys._current_frames().get(ident)  # noqa: SLF001 - documented, for diagnosis
    while frame is not None and frame.f_code is not asyncio.Runner.__exit__.__code__:
        frame = frame.f_back
    handled: Any = sys._current_exceptions().get(ident)  # noqa: SLF001 - likewise
    error = handled[1] if isinstance(handled, tuple) else handled  # a tuple before Python 3.12
    if frame is None or error is None or error.__traceback__ is None:
        return False
    return error.__traceback__.tb_frame is frame.f_back
