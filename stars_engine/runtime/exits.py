"""The end of the process: no thread of an engine may be inside torch when the interpreter ends.

Before Python 3.14 a daemon thread that comes back from native code into an interpreter that is
ending is unwound by force, which C++ answers with `terminate called without an active exception`
and an abort, whatever the exit code was to be. So threads are told to stop, then interrupted at the
next Python instruction; one that stays in native code is kept from aborting if it comes back.
"""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401 - its hook is to run after ours
import ctypes
import logging
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from stars_engine.errors import Interrupted

logger = logging.getLogger(__name__)

GRACE_S = 0.5  # in which threads end by themselves: at the next round or token
EXIT_S = 1.5  # how long the end of the process waits for them in all


class Worker(Protocol):
    """What has threads; see `Runtime`."""

    @property
    def threads(self) -> Sequence[threading.Thread]:
        """Those that are alive."""
        ...

    def close(self, *, wait: bool, at_once: bool) -> None:
        """Tell them to end, in the middle of what they do."""
        ...


_open: weakref.WeakSet[Worker] = weakref.WeakSet()


def register(worker: Worker) -> None:
    """Have its threads ended when the process ends, as long as it exists."""
    _open.add(worker)


def interrupt(thread: threading.Thread) -> None:
    """Raise `Interrupted` in a thread at its next Python instruction."""
    if thread.ident is not None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(Interrupted)
        )


def end_all() -> None:
    """End the threads of everything that is registered; for the end of the process."""
    workers = list(_open)
    for worker in workers:
        worker.close(wait=False, at_once=True)
    began_s = time.monotonic()
    while alive := [thread for worker in workers for thread in worker.threads]:
        passed_s = time.monotonic() - began_s
        if passed_s >= EXIT_S:
            logger.debug("still in native code at exit: %s", [thread.name for thread in alive])
            keep_from_aborting()
            return
        if passed_s >= GRACE_S:
            for thread in alive:
                interrupt(thread)
            alive[0].join(0.25)
        alive[0].join(0.05)


def keep_from_aborting() -> None:
    """Let a thread that comes back from native code from now on sleep for good.

    C++ calls its terminate handler there: one that never returns. And the process ends with its own
    code before C++ takes down what the thread may still be using. Both by functions of glibc and
    libstdc++; elsewhere threads are not unwound by force, or nothing can be done.
    """
    with suppress(OSError, AttributeError):
        libc, cpp = ctypes.CDLL(None), ctypes.CDLL("libstdc++.so.6")
        cpp._ZSt13set_terminatePFvvE(libc.pause)  # noqa: SLF001 - std::set_terminate
        libc.on_exit(libc._exit, None)  # noqa: SLF001 - _exit(status), called with the exit code


def _when_main_ends() -> None:
    """Before threads that are no daemons are waited for, as long as their calls may take.

    They may well go on with what they do, unless the main thread ended by an error.
    """
    if getattr(sys, "last_value", None) is not None:
        end_all()


atexit.register(end_all)
_register: Callable[[Callable[[], None]], Any] | None = getattr(threading, "_register_atexit", None)
if _register is not None:
    with suppress(RuntimeError):  # the process is ending already
        _register(_when_main_ends)
