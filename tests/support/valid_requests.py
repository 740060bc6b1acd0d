"""Random bodies that follow the description of the API, made to follow what it cannot express."""

from __future__ import annotations

from typing import Any

# Clients need permission for these.
_NOT_ALLOWED = ("threshold", "beta", "segment_len", "max_attempts", "on_exhausted", "rejected_text")


def corrected(path: str, body: Any, model: str = "chat") -> Any:
    """Return a body with which the server can generate, but not for long."""
    if not isinstance(body, dict):
        return body
    body = {**body, "model": model}
    stars = body.get("stars")
    if isinstance(stars, dict):
        body["stars"] = {key: value for key, value in stars.items() if key not in _NOT_ALLOWED}
    if isinstance(body.get("messages"), list):
        body["messages"] = [_message(message) for message in body["messages"]]
    if isinstance(body.get("input"), list) and path == "/v1/responses":
        body["input"] = [_item(item) for item in body["input"]]
    if isinstance(body.get("prompt"), list):
        body["prompt"] = body["prompt"][:8]
    for name, most in (("n", 2), ("max_tokens", 64), ("max_completion_tokens", 64)):
        if body.get(name) is not None:
            body[name] = min(body[name], most)
    _correct_pairs(path, body)
    return body


def _correct_pairs(path: str, body: dict[str, Any]) -> None:
    """Drop one of two fields that do not fit together."""
    if body.get("logit_bias"):
        values = body["logit_bias"].values()
        body["logit_bias"] = {str(token): value for token, value in enumerate(values)}
    if not body.get("stream"):
        body.pop("stream_options", None)
    if body.get("max_tokens") is not None:
        body.pop("max_completion_tokens", None)
    body.pop("response_format" if body.get("tools") else "tool_choice", None)
    if path == "/v1/score":
        body.pop("messages" if body.get("prompt") is not None else "prompt", None)
        if not body.get("messages"):
            body.setdefault("prompt", "Hello")


def _message(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    role = message.get("role")
    message = {**message, "content": _content(message.get("content"))}
    if role != "assistant":
        message = {k: v for k, v in message.items() if k not in ("tool_calls", "reasoning_content")}
    if role != "tool":
        message.pop("tool_call_id", None)
    for call in message.get("tool_calls") or ():
        call["function"]["arguments"] = "{}"
    return message


def _item(item: Any) -> Any:
    if isinstance(item, dict) and item.get("type") == "function_call":
        return {**item, "arguments": "{}"}
    return item


def _content(content: Any) -> Any:
    if isinstance(content, list):
        return [
            {**part, "text": part.get("text") or "a"} if part.get("type") == "text" else part
            for part in content
        ]
    return content or "Hello"
