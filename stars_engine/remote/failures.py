"""How answers and failures of servers are read, for errors that say what to do."""

from __future__ import annotations

import json
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from stars_engine.errors import ModelLoadError, ServerError, ServerFault
from stars_engine.redaction import redact
from stars_engine.remote.endpoints import Endpoint

if TYPE_CHECKING:
    import httpx

_SHOWN = 200  # characters of a server's message in errors


class MalformedAnswerError(ValueError):
    """The body of an answer does not have the form that its endpoint promises."""


class RefusedError(ServerError):
    """A server refused a request, and would refuse it again.

    Attributes:
        status: The HTTP status.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def refusal(endpoint: Endpoint, path: str, status: int, text: str) -> RefusedError:
    """Return the error of a request that a server refused."""
    hints = {
        401: "give the server's key as api_key or api_key_env",
        403: "give a key that may use this model as api_key or api_key_env",
        404: "check base_url and served_model",
    }
    hint = hints.get(status, "compare the settings with those of the server")
    return RefusedError(
        f"{endpoint.url}{path} refused a request with status {status}: {message_of(text)}. "
        f"Hint: {hint}",
        status,
    )


def load_error_of(error: ServerError, before: str = "", after: str = "") -> ModelLoadError:
    """Return why a model behind servers cannot be used, as their start probe reports it."""
    found = ModelLoadError(f"{before}{error}{after}")
    found.may_recover = error.fault != "bad_answer"
    return found


def message_of(text: str) -> str:
    """Return what a server says of an error, in one line."""
    with suppress(ValueError, TypeError, LookupError):
        text = str(json.loads(text)["error"]["message"])
    line = " ".join(redact(text).split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 3]}..."


def fault_of(error: httpx.HTTPError) -> ServerFault:
    """Return whether a server was late or could not be reached."""
    import httpx  # noqa: PLC0415 - an extra of its own

    is_late = isinstance(error, httpx.TimeoutException)
    return "timeout" if is_late and not isinstance(error, httpx.ConnectTimeout) else "unavailable"


def said_of(error: Exception) -> str:
    """Return the name of an error, and its message if it has one."""
    name = type(error).__name__
    return f"{name}: {error}" if str(error) else name


def retry_after_s(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header, which may also be a date."""
    if value is None:
        return None
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError, TypeError):
        at = parsedate_to_datetime(value)
        return max(0.0, (at - at.now(at.tzinfo)).total_seconds())
    return None
