"""The response around its output items: settings before the answer, status and usage after it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from openai.types.responses import Response as ResponseObject

from stars_engine.server.accounts import account_of, finish_reason_of, usage_of
from stars_engine.server.calls import EngineRequest
from stars_engine.server.responses.bodies import ResponsesBody
from stars_engine.types import StarsResult

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


def opened(body: ResponsesBody, call: EngineRequest) -> dict[str, Any]:
    """Return the response before its answer."""
    sampling = call.sampling
    choice = body.tool_choice
    wanted = None if body.text is None else body.text.format
    return {
        "id": call.id,
        "object": "response",
        "created_at": call.created,
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": sampling.max_tokens,
        "max_tool_calls": None,
        "metadata": body.metadata or {},
        "model": call.model.name,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls,
        "previous_response_id": None,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": None,
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": False,
        "temperature": sampling.temperature,
        "text": {
            "format": {"type": "text"}
            if wanted is None
            else wanted.model_dump(by_alias=True, exclude_none=True)
        },
        "tool_choice": (choice or "auto")
        if isinstance(choice, str | None)
        else choice.model_dump(),
        "tools": [
            {"description": None, "strict": True, "parameters": {}, **tool.model_dump()}
            for tool in body.tools or []
        ],
        "top_logprobs": 0,
        "top_p": sampling.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
    }


def is_incomplete(result: StarsResult) -> bool:
    """Whether the answer was cut off or refused."""
    return finish_reason_of(result) in _INCOMPLETE


def closed(
    frame: dict[str, Any], result: StarsResult, items: Sequence[dict[str, Any]], call: EngineRequest
) -> dict[str, Any]:
    """Return the response with its answer, status and usage."""
    reason = _INCOMPLETE.get(finish_reason_of(result))
    usage = usage_of([result])
    details = usage.completion_tokens_details
    assert details is not None
    return {
        **frame,
        "status": "incomplete" if reason else "completed",
        "completed_at": None if reason else int(time.time()),
        "incomplete_details": {"reason": reason} if reason else None,
        "output": list(items),
        "usage": {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {
                "reasoning_tokens": 0,
                **details.model_dump(exclude_unset=True),
            },
            "total_tokens": usage.total_tokens,
        },
        "stars": account_of(result, segments=call.options.segments),
    }


def dumped(response: dict[str, Any]) -> dict[str, Any]:
    """Return a response as JSON values, checked against OpenAI's type."""
    checked = ResponseObject.model_validate(response)
    values: dict[str, Any] = checked.model_dump(mode="json", by_alias=True, exclude_unset=True)
    for name in ("created_at", "completed_at"):
        if values[name] is not None:  # a float in OpenAI's type, an integer in its API
            values[name] = int(values[name])
    return values
