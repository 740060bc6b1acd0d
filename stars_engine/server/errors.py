"""Errors in OpenAI's shape. They never quote what the model wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from starlette.responses import Response

from stars_engine.errors import (
    AlignmentError,
    ConfigError,
    ContextOverflowError,
    EngineClosedError,
    ModelLoadError,
    NothingToDrawError,
    PromptError,
    QueueFullError,
    RewardError,
    ScheduleError,
    ServerError,
    ServerFault,
)
from stars_engine.rewards.failures import RewardTimeoutError

RETRY_AFTER_S = 1

# Parts of the engine's hints that clients of the API cannot follow.
_FOR_PYTHON = re.compile(
    r",? or (?:use |set )?(?:on_overflow='clamp'|Chat\(constrain_tools=False\))[^,.;]*"
    r"|; messages, tools and similar settings are fields of Chat, .*"
)
# Hints about Python values, and what they are in JSON.
_IN_JSON = {
    "use text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')": "remove it",
    "Hint: give a dict": "Hint: give a JSON object",
}


class ApiError(Exception):
    """An error that a client gets.

    Attributes:
        status: The HTTP status.
        message: What is wrong, what is allowed, and a hint.
        kind: OpenAI's type of the error.
        code: A code for programs, or None.
        param: The field of the request that is wrong, or None.
        headers: Further headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.code, self.param, self.headers = code, param, dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """The error as the body of a response, or as an event of a stream."""
        error = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}


class JsonResponse(Response):
    """JSON in which every character is valid, also what an invalid request contained."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Serialize to ASCII; lone surrogates stay escapes, and infinities are an error."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


def response_of(error: ApiError) -> JsonResponse:
    """Return an error as a response."""
    return JsonResponse(error.body, status_code=error.status, headers=error.headers)


def shortened(text: str, size: int = 80) -> str:
    """Return text of a client as an error quotes it."""
    return repr(text if len(text) <= size else f"{text[:size]}...")


def unavailable(message: str, code: str) -> ApiError:
    """Return the error of a server that cannot serve now."""
    headers = {"Retry-After": str(RETRY_AFTER_S)}
    return ApiError(503, message, kind="server_error", code=code, headers=headers)


def too_many_requests(message: str, retry_after_s: int = RETRY_AFTER_S) -> ApiError:
    """Return the error of a full server, or of a caller that asks for too much."""
    headers = {"Retry-After": str(retry_after_s)}
    return ApiError(
        429, message, kind="rate_limit_error", code="rate_limit_exceeded", headers=headers
    )


def message_of(error: BaseException) -> str:
    """Return the message of an error of the engine, without what only Python code can use."""
    problems = error.problems if isinstance(error, ConfigError) else []
    text = str(problems[0]) if len(problems) == 1 else str(error)
    for hint, in_json in _IN_JSON.items():
        text = text.replace(hint, in_json)
    return _FOR_PYTHON.sub("", text)


def _refused(error: BaseException) -> ApiError:
    return ApiError(400, message_of(error), code="invalid_value", param=_param_of(error))


def _none_accepted(_: BaseException) -> ApiError:
    message = "No draft was accepted. Hint: change the prompt, or retry with another seed"
    return ApiError(400, message, code="content_filter")


def _nothing_to_draw(_: BaseException) -> ApiError:
    message = "The settings leave no token to draw. Hint: check logit_bias, temperature and grammar"
    return ApiError(400, message, code="invalid_value")


# More special classes come before the classes that they extend.
_TOLD: tuple[tuple[tuple[type[Exception], ...], Callable[[BaseException], ApiError]], ...] = (
    ((QueueFullError,), lambda _: too_many_requests("The queue is full. Hint: retry later")),
    (
        (ContextOverflowError,),
        lambda e: ApiError(400, message_of(e), code="context_length_exceeded"),
    ),
    ((PromptError, ConfigError), _refused),
    ((AlignmentError,), _none_accepted),
    (
        (EngineClosedError, ModelLoadError),
        lambda _: unavailable("The model is not available", "model_unavailable"),
    ),
    ((NothingToDrawError,), _nothing_to_draw),
    ((RewardError,), lambda _: _failure("The reward model failed", "reward_failed")),
    ((ScheduleError,), lambda _: _failure("The threshold schedule failed", "schedule_failed")),
)


def api_error_of(error: BaseException) -> ApiError:
    """Return how clients see an error of the engine.

    Errors of models and rewards are not quoted, because they may contain rejected text.
    """
    if isinstance(error, ApiError):
        return error
    remote = server_error_of(error)
    if remote is not None:
        what = "reward model" if isinstance(error, RewardError) else "language model"
        return _remote_failure(what, remote.fault)
    if isinstance(error, RewardError) and isinstance(error.__cause__, RewardTimeoutError):
        return _failure("The reward model did not answer in time", "reward_timeout", 504)
    describe = next((tell for kinds, tell in _TOLD if isinstance(error, kinds)), None)
    if describe is not None:
        return describe(error)
    return _failure("The language model or the server failed", "internal_error")


def server_error_of(error: BaseException | None) -> ServerError | None:
    """Return the error of a server of a model from which an error follows, or None."""
    while error is not None and not isinstance(error, ServerError):
        error = error.__cause__
    return error


def _failure(message: str, code: str, status: int = 500) -> ApiError:
    text = f"{message}. Hint: the server's log has the error under the id of this request"
    return ApiError(status, text, kind="server_error", code=code)


def _remote_failure(what: str, fault: ServerFault) -> ApiError:
    if fault == "unavailable":
        return unavailable(
            f"The {what}'s server is not available. Hint: retry later", "backend_unavailable"
        )
    if fault == "timeout":
        return _failure(f"The {what}'s server did not answer in time", "backend_timeout", 504)
    return _failure(f"The {what}'s server gave no usable answer", "backend_failed", 502)


def _param_of(error: BaseException) -> str | None:
    problems = error.problems if isinstance(error, ConfigError) else []
    return problems[0].field or None if problems else None
