"""Convert engine results to LangChain messages, chunks, usage and metadata."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import ToolCallChunk, invalid_tool_call, tool_call_chunk
from langchain_core.messages.tool import tool_call as make_tool_call
from langchain_core.outputs import (
    ChatGeneration,
    ChatGenerationChunk,
    Generation,
    GenerationChunk,
)
from langchain_core.utils.json import parse_partial_json

from langchain_stars.refusals import HAS_REFUSAL_BLOCKS, blocks_of, refusal_in
from stars_engine import Message, SegmentEvent, StarsConfig, StarsResult
from stars_engine.integrations import account_of, name_of_model, num_rejected_tokens, usage_of

_NORMALIZED = {
    "stop": "stop",
    "tool_calls": "tool_call",
    "length": "length",
    "deadline": "length",
    "budget": "length",
    "rejected": "refusal",
    "fallback": "refusal",
}


def generation_of(result: StarsResult) -> Generation:
    """Return an answer as text; the reasoning of a chat answer is in its info."""
    return Generation(text=text_of(result), generation_info=info_of(result))


def generation_chunk_of(event: SegmentEvent) -> GenerationChunk:
    """Return an accepted segment as a chunk of text; the last one has the info."""
    text = event.text if event.content is None else event.content
    return GenerationChunk(text=text, generation_info=event.result and info_of(event.result))


def text_of(result: StarsResult) -> str:
    """Return the text of an answer; for conversations, without the reasoning."""
    return result.text if result.message is None else result.message.content


def info_of(result: StarsResult) -> dict[str, Any]:
    """Return the metadata of an answer, including reasoning and refusal."""
    info = account_of(result)
    if result.message is not None and result.message.reasoning:
        info["reasoning"] = result.message.reasoning
    if (refusal := refusal_in(result)) is not None:
        info["refusal"] = refusal
    return info


def chat_generation_of(result: StarsResult, settings: StarsConfig) -> ChatGeneration:
    """Return an answer as a message."""
    said = _message_of(result)
    message = AIMessage(
        content=_content_of(result),
        additional_kwargs=_extras_of(result),
        tool_calls=[make_tool_call(**_call_fields(call)) for call in said.tool_calls],
        invalid_tool_calls=[
            invalid_tool_call(name=call.name, args=call.text, id=None, error=call.error)
            for call in said.invalid_tool_calls
        ],
        usage_metadata=usage_metadata_of(result),
        response_metadata=metadata_of(result, settings),
    )
    return ChatGeneration(message=message, generation_info=_generation_info(result))


def chat_chunk_of(event: SegmentEvent, settings: StarsConfig) -> ChatGenerationChunk:
    """Return an accepted segment as a chunk of the message; the last one has the metadata."""
    content: str | list[str | dict[Any, Any]] = event.content or ""
    extras: dict[str, Any] = {}
    if event.reasoning:
        extras["reasoning_content"] = event.reasoning
    if event.result is None:
        return ChatGenerationChunk(
            message=AIMessageChunk(content=content, additional_kwargs=extras)
        )
    result = event.result
    if (refusal := refusal_in(result)) is not None:
        extras["refusal"] = refusal
        if _has_block(result):
            content = blocks_of(event.content or "", refusal)
    message = AIMessageChunk(
        content=content,
        additional_kwargs=extras,
        tool_call_chunks=_call_chunks(_message_of(result)),
        usage_metadata=usage_metadata_of(result),
        response_metadata=metadata_of(result, settings),
        chunk_position="last",
    )
    return ChatGenerationChunk(message=message, generation_info=_generation_info(result))


def usage_metadata_of(result: StarsResult) -> UsageMetadata:
    """Return token counts; in the details, `rejected` counts discarded tokens."""
    usage = result.usage
    details = {
        "drafted": usage.num_drafted_tokens,
        "rejected": num_rejected_tokens(result),
        "surplus": usage.num_surplus_tokens,
        "lookahead": usage.num_lookahead_tokens,
    }
    return UsageMetadata(
        input_tokens=usage.num_prompt_tokens,
        output_tokens=usage.num_kept_tokens,
        total_tokens=usage.num_prompt_tokens + usage.num_kept_tokens,
        output_token_details=details,  # type: ignore[typeddict-item]
    )


def llm_output_of(results: Sequence[StarsResult], settings: StarsConfig) -> dict[str, Any]:
    """Return the usage and the model name for all answers to one call."""
    totals: Counter[str] = Counter()
    for result in results:
        totals.update(usage_of(result))
    return {"token_usage": dict(totals), "model_name": name_of_model(settings)}


def metadata_of(result: StarsResult, settings: StarsConfig) -> dict[str, Any]:
    """Return the metadata of an answer, under LangChain's names where they exist."""
    account = account_of(result)
    del account["usage"]  # the message has a separate field for it
    return {
        "model_name": name_of_model(settings),
        "model_provider": "stars",
        **account,
        "normalized_finish_reason": _NORMALIZED.get(result.finish_reason, "other"),
    }


def _message_of(result: StarsResult) -> Message:
    assert result.message is not None, "answers to conversations have a message"
    return result.message


def _content_of(result: StarsResult) -> str | list[str | dict[Any, Any]]:
    content, refusal = _message_of(result).content, refusal_in(result)
    return blocks_of(content, refusal) if refusal and _has_block(result) else content


def _has_block(result: StarsResult) -> bool:
    """Whether a refusal is reported as a block; a fallback is text of the answer."""
    return HAS_REFUSAL_BLOCKS and result.finish_reason == "rejected"


def _extras_of(result: StarsResult) -> dict[str, Any]:
    extras: dict[str, Any] = {}
    if (reasoning := _message_of(result).reasoning) is not None:
        extras["reasoning_content"] = reasoning
    if (refusal := refusal_in(result)) is not None:
        extras["refusal"] = refusal
    return extras


def _generation_info(result: StarsResult) -> dict[str, Any]:
    return {"finish_reason": result.finish_reason}


def _call_fields(call: Any) -> dict[str, Any]:
    return {"name": call.name, "args": call.arguments, "id": call.id}


def _call_chunks(message: Message) -> list[ToolCallChunk]:
    """Return calls as chunks, which LangChain merges into calls; invalid ones stay invalid."""
    valid = [
        tool_call_chunk(
            name=call.name, args=json.dumps(call.arguments, ensure_ascii=False), id=call.id, index=i
        )
        for i, call in enumerate(message.tool_calls)
    ]
    invalid = [
        tool_call_chunk(name=call.name, args=_not_parsed(call.text), id=None, index=len(valid) + i)
        for i, call in enumerate(message.invalid_tool_calls)
    ]
    return [*valid, *invalid]


def _not_parsed(text: str) -> str:
    """Encode the text of an invalid call so that LangChain does not parse it as a valid one."""
    try:
        return json.dumps(text) if isinstance(parse_partial_json(text), dict) else text
    except (ValueError, RecursionError):
        return text
