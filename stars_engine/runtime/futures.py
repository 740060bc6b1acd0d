"""Futures between the engine's thread and its callers; either may give up at any time."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from functools import partial
from threading import RLock
from typing import Any, TypeVar

from stars_engine.errors import is_for_program
from stars_engine.runtime.forks import check_process

logger = logging.getLogger(__name__)

Value = TypeVar("Value")


class RequestFuture(Future[Value]):
    """A future that a caller waits for.

    `cancel` notifies `concurrent.futures.wait` and `as_completed` at once. Ordinary futures notify
    them when an executor picks them up, which never happens here. In a forked process, waiting for
    the future raises an error.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pid = os.getpid()
        self._notifying = RLock()  # reentrant, because callbacks may cancel again
        self._notified = False

    def cancel(self) -> bool:
        """See `Future.cancel`, and `result`."""
        self._check_process()
        cancelled = super().cancel()
        if cancelled:
            with self._notifying:
                if not self._notified:
                    self._notified = True
                    self.set_running_or_notify_cancel()
        return cancelled

    def result(self, timeout: float | None = None) -> Value:
        """See `Future.result`.

        Raises:
            EngineForkedError: A forked process inherited the future before it was done.
        """
        self._check_process()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """See `Future.exception`, and `result`."""
        self._check_process()
        return super().exception(timeout)

    def _check_process(self) -> None:
        if self._state != "FINISHED":  # without its lock, which a fork may have inherited locked
            check_process(self._pid)


def set_result(future: Future[Any], value: Any) -> None:
    """Set a result, unless the future is done or cancelled."""
    _set_outcome(future, partial(future.set_result, value))


def set_exception(future: Future[Any], error: BaseException) -> None:
    """Set an exception, unless the future is done or cancelled."""
    _set_outcome(future, partial(future.set_exception, error))


def _set_outcome(future: Future[Any], outcome: Callable[[], None]) -> None:
    """Set an outcome; log errors of callbacks, which are third-party code."""
    if future.done():
        return
    try:
        outcome()
    except InvalidStateError:
        pass  # cancelled since the check
    except BaseException as error:
        if is_for_program(error):
            raise
        logger.exception("A callback of a future failed")
