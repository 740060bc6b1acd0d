"""Ctrl-C ends a command with status 130 within a second, wherever it strikes.

Python raises `KeyboardInterrupt` at any instruction of the main thread: in a third-party import
that turns it into an `ImportError`, in a finalizer that drops it, in native code that takes long,
or twice, when `timeout` signals both a process and its group. So the first Ctrl-C raises the error,
later ones do nothing, and a thread ends the process if the error did not.

A server is different: the first signal lets its requests end, and the next one ends the process.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import sys
import time
from _thread import start_new_thread
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import current_thread, main_thread
from types import FrameType

INTERRUPTED = 130  # the status of shells for a command that Ctrl-C ended
GRACE_S = 0.7  # for an interrupted command to end by itself


class _Watch:
    """Handles Ctrl-C, and ends the process if the error that it raises does not."""

    def __init__(self) -> None:
        self.interrupted = False
        self._said = self._started = False
        self._reader, self._writer = socket.socketpair()
        self._writer.settimeout(0)

    def start(self) -> None:
        """Handle Ctrl-C from now on."""
        self._started = True
        # Python writes the number of a signal there at once, even during native code.
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, self._raise_once)
        start_new_thread(self._end_process, ())

    def stop(self) -> None:
        """Handle Ctrl-C as Python does."""
        if self._started:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.set_wakeup_fd(-1)
        self._writer.close()

    def say(self) -> None:
        """Print that the command was interrupted, once."""
        if not self._said:
            self._said = True
            os.write(2, b"interrupted\n")

    def _raise_once(self, _number: int, _frame: FrameType | None) -> None:
        if not self.interrupted:
            self.interrupted = True
            raise KeyboardInterrupt

    def _end_process(self) -> None:
        while number := self._reader.recv(1):
            if number[0] == signal.SIGINT:
                time.sleep(GRACE_S)
                self.say()
                os._exit(INTERRUPTED)


@contextmanager
def signals_left_alone() -> Iterator[None]:
    """Leave Ctrl-C to the handlers that the code inside sets."""
    if current_thread() is not main_thread():
        yield
        return
    before = signal.set_wakeup_fd(-1)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before, warn_on_full_buffer=False)


_ended_by: list[int] = []  # the number of the signal after which the process ends soon


def end_soon(number: int) -> None:
    """End the process within a second, as shells report a signal, unless it ends by itself."""
    _ended_by[:] = [number]

    def end() -> None:
        time.sleep(GRACE_S)
        os._exit(status_of(number))

    start_new_thread(end, ())


@atexit.register  # before those of later imports, so it runs after them
def _end_without_teardown() -> None:
    """Leave out the teardown of modules: it may take seconds, and no thread can end it then."""
    if _ended_by:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # the reader may be gone
                stream.flush()
        os._exit(status_of(_ended_by[0]))


def status_of(number: int) -> int:
    """Return the status of shells for a command that a signal ended."""
    return 128 + number


def run_interruptible(run: Callable[[], None]) -> None:
    """Run a command; after Ctrl-C, end the process with status 130, whatever the command does.

    If Ctrl-C is ignored (as with `nohup`) or handled by others, it stays so.
    """
    watch = _Watch()
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_default and current_thread() is main_thread():
        watch.start()
    try:
        run()
    except KeyboardInterrupt:
        watch.interrupted = True
    except BaseException as error:
        # typer converts `KeyboardInterrupt`; other code may turn it into any error.
        if not watch.interrupted and getattr(error, "code", None) != INTERRUPTED:
            watch.stop()
            raise
        watch.interrupted = True
    if watch.interrupted:  # it stays without effect while the process ends
        watch.say()
        sys.exit(INTERRUPTED)
    watch.stop()
