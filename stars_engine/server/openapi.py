"""The description of the API at `/openapi.json`."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_STATUSES = {
    "400": "The request is invalid; `param` names the field",
    "401": "A valid API key is required",
    "404": "The model does not exist",
    "408": "The body did not arrive in time",
    "413": "The body is too large",
    "415": "The body is compressed",
    "429": "The queue is full, or a limit of the key is reached; retry after `Retry-After` seconds",
    "500": "A model failed",
    "502": "The server of a model gave no usable answer",
    "503": "The model is loading or its server is not available, or this server is stopping",
    "504": "A reward, or the server of a model, did not answer in time",
}
_STREAMS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
_TEXTS = {"/metrics": "text/plain", "/": "text/html"}


def describe(app: FastAPI) -> None:
    """Let the application describe its errors, streams and texts as they are."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _described(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _described(app: FastAPI) -> dict[str, Any]:
    schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
    parts = schema["components"]["schemas"]
    parts["Error"] = _ERROR
    for name in ("HTTPValidationError", "ValidationError"):
        parts.pop(name, None)
    json_error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    errors = {
        status: {"description": about, "content": json_error} for status, about in _STATUSES.items()
    }
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            responses = operation["responses"]
            responses.pop("422", None)
            if path.startswith("/v1/"):
                responses |= errors
            elif path == "/readyz":
                responses["503"] = responses["200"]
            if path in _TEXTS:
                responses["200"]["content"] = {_TEXTS[path]: {"schema": {"type": "string"}}}
            if path in _STREAMS:
                responses["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    return schema
