"""Give threads that prepare work less of a busy processor than the engine's thread gets."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress

NICENESS = 10  # a tenth of the weight of a normal thread


def lower_priority() -> None:
    """Let other threads run before the current thread, for the rest of its life.

    Threads that it starts inherit the priority. Only Linux has a priority for each thread; there is
    no effect elsewhere.
    """
    if sys.platform == "linux":
        with suppress(OSError):  # a sandbox may forbid it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
