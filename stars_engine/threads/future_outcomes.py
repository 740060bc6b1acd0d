"""Set outcomes of futures whose callers may give up at any time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from functools import partial
from typing import Any

from stars_engine.problems import is_for_program

logger = logging.getLogger(__name__)


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
