"""Callers' threads, while they wait for the engine's."""

from __future__ import annotations

import asyncio
import sys
import threading
from concurrent.futures import Future
from typing import TypeVar

from stars_engine.errors import EngineClosedError

Value = TypeVar("Value")

CHECK_S = 0.5  # between two looks at whether anybody can receive what is waited for


def wait_for(future: Future[Value]) -> Value:
    """Return a future's result.

    `asyncio.run` waits for its threads (`asyncio.to_thread`) when it ends, also when it ends by an
    error such as Ctrl-C: what they still wait for would keep the program alive, and no task is left
    that could receive it.

    Raises:
        EngineClosedError: That is the case.
    """
    if not threading.current_thread().name.startswith("asyncio_"):
        return future.result()
    while not future.done():
        try:
            return future.result(timeout=CHECK_S)
        except TimeoutError:
            if not future.done() and _asyncio_run_failed():
                raise EngineClosedError(
                    "asyncio.run ended by an error while this thread waited for the engine"
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
