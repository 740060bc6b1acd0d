"""End engine threads when the process exits: none may be inside torch as the interpreter ends.

Before Python 3.14, a daemon thread that returns from native code into a finalizing interpreter is
unwound by force. C++ then aborts the process with `terminate called without an active exception`,
whatever the exit code. So threads are asked to stop, then interrupted at their next Python
instruction. A thread that stays in native code is kept from aborting when it returns.
"""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401 - its exit hook must run after ours
import ctypes
import logging
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from stars_engine.problems import Interrupted

logger = logging.getLogger(__name__)

GRACE_S = 0.25  # time for threads to end by themselves, at the next step or token
EXIT_S = 0.7  # total time that the exit waits for threads


class Worker(Protocol):
    """An object with threads; see `Runtime`."""

    @property
    def threads(self) -> Sequence[threading.Thread]:
        """Its threads that are alive."""

    def close(self, *, wait: bool, at_once: bool) -> None:
        """Ask the threads to end, during their current work if `at_once`."""


_open: weakref.WeakSet[Worker] = weakref.WeakSet()


def register(worker: Worker) -> None:
    """End the worker's threads at exit, if the worker still exists."""
    _open.add(worker)


def interrupt(thread: threading.Thread) -> None:
    """Raise `Interrupted` in a thread at its next Python instruction."""
    if thread.ident is not None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(Interrupted)
        )


def end_all() -> None:
    """End the threads of all registered workers, at exit.

    Ctrl-C ends the wait.
    """
    try:
        _end_all(list(_open))
    except KeyboardInterrupt:
        keep_from_aborting()


def _end_all(workers: Sequence[Worker]) -> None:
    for worker in workers:
        worker.close(wait=False, at_once=True)
    began_s = time.monotonic()
    while alive := [thread for worker in workers for thread in worker.threads]:
        passed_s = time.monotonic() - began_s
        if passed_s >= EXIT_S:
            logger.debug("Still in native code at exit: %s", [thread.name for thread in alive])
            keep_from_aborting()
            return
        if passed_s >= GRACE_S:
            for thread in alive:
                interrupt(thread)
            alive[0].join(0.1)
        alive[0].join(0.05)


def keep_from_aborting() -> None:
    """Suspend threads that return from native code from now on.

    C++ calls its terminate handler there, so this installs one that never returns. The process then
    exits with its own code before C++ destroys objects that a thread may still use. Both rely on
    functions of glibc and libstdc++. On other platforms, threads are not unwound by force, or
    nothing can be done.
    """
    with suppress(OSError, AttributeError):
        libc, cpp = ctypes.CDLL(None), ctypes.CDLL("libstdc++.so.6")
        cpp._ZSt13set_terminatePFvvE(libc.pause)  # noqa: SLF001 - std::set_terminate
        libc.on_exit(libc._exit, None)  # noqa: SLF001 - _exit(status), called with the exit code


def _when_main_ends() -> None:
    """End all threads before non-daemon threads are joined, if the main thread raised an error.

    Otherwise, non-daemon threads may finish their calls.
    """
    if getattr(sys, "last_value", None) is not None:
        end_all()


def _end_rest() -> None:
    """Keep threads from aborting that are still alive, as when Ctrl-C came before `end_all`."""
    if any(worker.threads for worker in list(_open)):
        keep_from_aborting()
    if _is_interrupted():
        # Python ends with SIGINT after a KeyboardInterrupt, unless code was compiled and run
        # meanwhile, by an import in another thread for example. This reminds it.
        with suppress(KeyboardInterrupt):
            exec("raise KeyboardInterrupt")


def _is_interrupted() -> bool:
    """Whether an uncaught KeyboardInterrupt ended the main program, not a line of a shell."""
    error, main = getattr(sys, "last_value", None), sys.modules.get("__main__")
    if type(error) is not KeyboardInterrupt or main is None or hasattr(sys, "ps1"):
        return False
    outermost = error.__traceback__
    return outermost is not None and outermost.tb_frame.f_globals is vars(main)


atexit.register(_end_rest)  # called after `end_all`
atexit.register(end_all)
_register: Callable[[Callable[[], None]], Any] | None = getattr(threading, "_register_atexit", None)
if _register is not None:
    with suppress(RuntimeError):  # the process is already exiting
        _register(_when_main_ends)
