"""The exceptions of the package: those of inputs, and those of requests with what they accepted."""

from __future__ import annotations

import copy
from typing import Literal

from stars_engine.problems import (
    HINT,
    ConfigError,
    ContextOverflowError,
    Interrupted,
    MissingExtraError,
    ModelLoadError,
    Problem,
    PromptError,
    StarsError,
    StarsWarning,
    describe_error,
    is_for_program,
    needs_extra,
)
from stars_engine.types import Score, StarsResult

__all__ = [
    "HINT",
    "AlignmentError",
    "CalibrationStoppedError",
    "ConfigError",
    "ContextOverflowError",
    "EngineClosedError",
    "EngineForkedError",
    "GenerationError",
    "Interrupted",
    "MissingExtraError",
    "ModelLoadError",
    "NothingToDrawError",
    "Problem",
    "PromptError",
    "QueueFullError",
    "RequestError",
    "RewardError",
    "RewardOutcome",
    "ScheduleError",
    "ServerError",
    "ServerFault",
    "StarsError",
    "StarsWarning",
    "describe_error",
    "is_for_program",
    "needs_extra",
    "with_result",
]


class RequestError(StarsError):
    """A request failed; other requests in its batch are not affected.

    Attributes:
        result: The part that was accepted before the failure (`finish_reason="error"` or
            `"rejected"`), or None if the request failed before any work.
    """

    def __init__(self, message: str, result: StarsResult | None = None) -> None:
        super().__init__(message)
        self.result = result


class RewardError(RequestError):
    """The reward model raised an error, or returned something that is not a number."""


RewardOutcome = Score | RewardError  # of one candidate
ServerFault = Literal["unavailable", "timeout", "bad_answer"]


class ScheduleError(RequestError):
    """The function of a schedule raised an error, or returned something that is not a number."""


class AlignmentError(RequestError):
    """No candidate was accepted in `max_attempts` draws and `on_exhausted` is `"raise"`."""


class CalibrationStoppedError(RequestError):
    """A calibration was stopped before its last stage."""


class GenerationError(RequestError):
    """The language model failed, for example because it ran out of memory."""


class ServerError(GenerationError):
    """An HTTP server could not be reached, or its answer cannot be used.

    Attributes:
        fault: "unavailable" if the server cannot be reached or reports an error of its own,
            "timeout" if it did not answer in time, "bad_answer" if it refused the request or its
            answer cannot be used.
    """

    def __init__(
        self,
        message: str,
        result: StarsResult | None = None,
        *,
        fault: ServerFault = "bad_answer",
    ) -> None:
        super().__init__(message, result)
        self.fault: ServerFault = fault


class NothingToDrawError(GenerationError):
    """The sampling settings, or the grammar, of a request leave no token to draw."""


class EngineClosedError(RequestError):
    """A closed engine received a request, or the engine was closed while a request was running."""


class EngineForkedError(StarsError):
    """An engine was used in a forked process, where its thread does not exist."""


class QueueFullError(StarsError):
    """The engine's queue is full and `on_full` is `"raise"`."""


def with_result(error: Exception, result: StarsResult | None) -> Exception:
    """Return the error of one request, with its result.

    Third-party code may raise one error for several requests, each of which gets a copy, or an
    error of a class of its own that accepts no result.
    """
    if not isinstance(error, RequestError):
        return error
    try:
        own = error if error.result is None else copy.copy(error)
        own.result = result
    except Exception:  # noqa: BLE001 - a third-party class
        own = GenerationError(describe_error(error), result)
    if own is not error:
        own.__cause__ = error.__cause__
    return own
