"""How the threads of callers wait for the engine's thread."""

from __future__ import annotations

import asyncio
import sys
import threading
from concurrent.futures import Future
from typing import TypeVar

from stars_engine.errors import EngineClosedError

Value = TypeVar("Value")

CHECK_S = 0.5  # between two checks whether `asyncio.run` has failed


def wait_for(future: Future[Value]) -> Value:
    """Return the result of a future.

    When `asyncio.run` ends, it joins its threads (`asyncio.to_thread`), even after an error such as
    Ctrl-C. A thread that still waits would keep the program alive, although no task is left that
    could receive the result. So such a thread stops waiting.

    Raises:
        EngineClosedError: `asyncio.run` failed while its thread waited here.
    """
    if not threading.current_thread().name.startswith("asyncio_"):
        return future.result()
    while not future.done():
        try:
            return future.result(timeout=CHECK_S)
        except TimeoutError:
            if not future.done() and _asyncio_run_failed():
                raise EngineClosedError(
                    "asyncio.run raised an error while this thread waited for the engine"
                ) from None
    return future.result()


def _asyncio_run_failed() -> bool:
    """Whether the main thread is leaving `asyncio.run` because of an error."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)  # noqa: SLF001
    while frame is not None:
        if frame.f_code is asyncio.Runner.__exit__.__code__:
            return frame.f_locals.get("exc_type") is not None
        frame = frame.f_back
    return False
