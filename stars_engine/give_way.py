"""Let other threads run during long computations in Python, which share one interpreter lock.

A thread that computes in Python delays every step of the engine by milliseconds at each call of a
native library. So background threads pause regularly while the engine is busy.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

RUN_S = 0.001  # between two pauses
PAUSE_S = 0.006

_local = threading.local()


def mark_background(is_busy: Callable[[], bool]) -> None:
    """Let the current thread pause in `give_way` while others are busy."""
    _local.is_busy, _local.resumed_s = is_busy, time.perf_counter()


def give_way() -> None:
    """Pause if this is a background thread that has run for a while, and others are busy."""
    is_busy = getattr(_local, "is_busy", None)
    if is_busy is None or time.perf_counter() - _local.resumed_s < RUN_S:
        return
    if is_busy():
        time.sleep(PAUSE_S)
    _local.resumed_s = time.perf_counter()
