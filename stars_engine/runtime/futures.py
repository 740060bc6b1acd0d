"""Futures between the engine's thread and its callers: either may give up at any moment."""

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


class CallFuture(Future[Value]):
    """What a caller waits for.

    Its cancelling is told to `concurrent.futures.wait` and `as_completed` at once: the engine never
    "runs" it, which is when others tell. In a forked process it says that nobody will answer.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pid = os.getpid()
        self._telling = RLock()  # callbacks may cancel again
        self._told = False

    def cancel(self) -> bool:
        """See `Future.cancel`, and `result`."""
        self._check_process()
        cancelled = super().cancel()
        if cancelled:
            with self._telling:
                if not self._told:
                    self._told = True
                    self.set_running_or_notify_cancel()
        return cancelled

    def result(self, timeout: float | None = None) -> Value:
        """See `Future.result`.

        Raises:
            EngineForkedError: It was inherited by a forked process before it was done.
        """
        self._check_process()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """See `Future.exception`, and `result`."""
        self._check_process()
        return super().exception(timeout)

    def _check_process(self) -> None:
        if self._state != "FINISHED":  # without its lock, which may be held for ever
            check_process(self._pid)


def resolve(future: Future[Any], value: Any) -> None:
    """Set a result, unless the future is done: whoever waited may have cancelled it."""
    _settle(future, partial(future.set_result, value))


def reject(future: Future[Any], error: BaseException) -> None:
    """Set an error, unless the future is done."""
    _settle(future, partial(future.set_exception, error))


def _settle(future: Future[Any], outcome: Callable[[], None]) -> None:
    """Set an outcome; the callbacks it sets off are other people's code, and may exit."""
    if future.done():
        return
    try:
        outcome()
    except InvalidStateError:
        pass  # cancelled at this moment
    except BaseException as error:
        if is_for_program(error):
            raise
        logger.exception("a callback of a future failed")
