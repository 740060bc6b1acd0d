"""Problems of requests that pydantic refused, in OpenAI's shape."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.exceptions import HTTPException

from stars_engine.server.errors import ApiError, shortened
from stars_engine.server.fields import StarsOptions

_INVALID_JSON = (
    "The body cannot be read as a JSON object. Hint: send one in UTF-8, with Content-Type: "
    "application/json"
)
_CODES = {
    400: "invalid_json",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "body_too_large",
}
_MESSAGES = {400: _INVALID_JSON, 404: "There is nothing at this path"}


def http_error_of(error: HTTPException) -> ApiError:
    """Return an error of the framework in OpenAI's shape.

    It raises 400 for bodies that it cannot decode.
    """
    status = error.status_code
    message = _MESSAGES.get(status, error.detail)
    headers = dict(error.headers or {})
    if headers.get("Allow") == "GET":
        headers["Allow"] = "GET, HEAD"
    return ApiError(status, message, code=_CODES.get(status), headers=headers)


def validation_error_of(
    problems: Sequence[Mapping[str, Any]], body: Any, unsupported: Mapping[str, str]
) -> ApiError:
    """Return one problem of a request that pydantic refused.

    Args:
        problems: The problems, as pydantic lists them.
        body: The body of the request.
        unsupported: Fields of OpenAI's API that this server does not serve, with hints.
    """
    problem = max(problems, key=_rank_of)
    is_absent = problem["type"] in ("missing", "extra_forbidden")
    path = _path_of(problem["loc"], body, is_absent=is_absent)
    if problem["type"] == "json_invalid" or (not path and problem["type"] != "value_error"):
        return ApiError(400, _INVALID_JSON, code="invalid_json")
    if problem["type"] == "extra_forbidden":
        name, path = str(problem["loc"][-1])[:80], path[:160]
        if hint := unsupported.get(re.sub(r"\[\d+\]", "", path)):
            message = f"{path!r} is not supported by this server. Hint: {hint}"
            return ApiError(400, message, code="unsupported_parameter", param=path)
        if path in StarsOptions.model_fields:
            message = f"Unknown field {name!r}. Hint: send it as stars.{name}"
            return ApiError(400, message, code="unknown_parameter", param=path)
        where = "" if path == name else f" at {path!r}"
        message = f"Unknown field {name!r}{where}. Hint: remove it"
        return ApiError(400, message, code="unknown_parameter", param=path)
    context = problem.get("ctx", {})
    if problem["type"] == "union_tag_invalid":
        path = f"{path}.type"
        tag = shortened(context["tag"])
        message = f"{path} is {tag}; expected one of {context['expected_tags']}"
        return ApiError(400, message, code="invalid_value", param=path)
    text = str(problem["msg"]).removeprefix("Value error, ")
    message = f"{path}: {text}" if path else text
    if problem["type"] == "literal_error" and isinstance(problem.get("input"), str):
        message = f"{path} is {shortened(problem['input'])}; expected {context['expected']}"
    return ApiError(400, message, code="invalid_value", param=path or None)


def _rank_of(problem: Mapping[str, Any]) -> tuple[bool, bool, int, bool]:
    """Return how likely a problem is the cause of the others.

    A field that is not served comes first, then a `type` that does not exist. Of the problems with
    each form that a value may have, the deepest one is of the form that was meant, or one that is
    not about the form.
    """
    loc, kind = problem["loc"], problem["type"]
    is_type = kind == "union_tag_invalid" or (kind == "literal_error" and loc[-1] == "type")
    is_unknown = kind == "extra_forbidden" and len(loc) == 2
    return is_unknown, is_type, len(loc), not kind.endswith("_type")


def _path_of(loc: Sequence[str | int], body: Any, *, is_absent: bool) -> str:
    """Return the path of a field as OpenAI writes it: `messages[0].role`.

    Between the fields, pydantic lists which form of a value it tried; these are left out. Only the
    last field may be absent.
    """
    path, value = "", body
    parts = loc[1:] if loc and loc[0] == "body" else loc
    for index, part in enumerate(parts):
        is_form = isinstance(part, str) and "[" in part  # such as tagged-union[...]
        if isinstance(value, Mapping) and (
            part in value or (is_absent and index == len(parts) - 1 and not is_form)
        ):
            path += f".{part}" if path else str(part)
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            path += f"[{part}]"
            value = value[part]
    return path
