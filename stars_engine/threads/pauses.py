"""Pauses of long computations in Python while other threads are busy; see `give_way`."""

from __future__ import annotations

import time
from collections.abc import Callable

RUN_S = 0.001  # of a computation in Python, between two pauses
PAUSE_S = 0.006


class UnwantedWorkError(Exception):
    """Ends work whose result is not needed any more."""


class Pauses:
    """Pauses regularly while other threads are busy; see `set_pause`.

    Args:
        is_busy: Whether other threads are busy.
        is_wanted: Whether the work goes on.
    """

    def __init__(self, is_busy: Callable[[], bool], is_wanted: Callable[[], bool]) -> None:
        self._is_busy, self._is_wanted = is_busy, is_wanted
        self._resumed_s = time.perf_counter()

    def __call__(self) -> None:
        """Pause if the thread has run for a while.

        Raises:
            UnwantedWorkError: The work is not wanted any more.
        """
        if time.perf_counter() - self._resumed_s < RUN_S:
            return
        if not self._is_wanted():
            raise UnwantedWorkError("this work is no longer needed")
        if self._is_busy():
            time.sleep(PAUSE_S)
        self._resumed_s = time.perf_counter()
