"""Let other threads run during long computations in Python, which share one interpreter lock.

A background thread that computes in Python delays each call of a native library on other threads by
milliseconds. So long computations call `give_way` regularly, and such a thread sets what it does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

_local = threading.local()


def give_way() -> None:
    """Call what the current thread has set, if anything."""
    pause = getattr(_local, "pause", None)
    if pause is not None:
        pause()


def set_pause(pause: Callable[[], None] | None) -> None:
    """Set what `give_way` does on the current thread; None for nothing."""
    _local.pause = pause
