"""Convert engine results to LangChain messages, chunks, usage and metadata."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import OutputTokenDetails, UsageMetadata
from langchain_core.messages.tool import ToolCallChunk, invalid_tool_call
from langchain_core.messages.tool import tool_call as make_tool_call
from langchain_core.outputs import (
    ChatGeneration,
    ChatGenerationChunk,
    Generation,
    GenerationChunk,
)

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


@dataclass(frozen=True, slots=True)
class Reporting:
    """What the metadata of an answer depends on, besides its result.

    Attributes:
        settings: The settings of the call.
        trace: Whether to report the segments.
        num_tokens: Counts the tokens of a text.
    """

    settings: StarsConfig
    trace: bool
    num_tokens: Callable[[str], int]


def generation_of(result: StarsResult, *, trace: bool) -> Generation:
    """Return an answer as text; the reasoning of a chat answer is in its info."""
    return Generation(text=text_of(result), generation_info=info_of(result, trace=trace))


def generation_chunk_of(event: SegmentEvent, *, trace: bool) -> GenerationChunk:
    """Return an accepted segment as a chunk of text; the last one has the info."""
    text = event.text if event.content is None else event.content
    info = None if event.result is None else info_of(event.result, trace=trace)
    return GenerationChunk(text=text, generation_info=info)


def text_of(result: StarsResult) -> str:
    """Return the text of an answer; for conversations, without the reasoning."""
    return result.text if result.message is None else result.message.content


def info_of(result: StarsResult, *, trace: bool) -> dict[str, Any]:
    """Return the metadata of an answer, including reasoning and refusal."""
    info = account_of(result, trace=trace)
    if result.message is not None and result.message.reasoning:
        info["reasoning"] = result.message.reasoning
    if (refusal := refusal_in(result)) is not None:
        info["refusal"] = refusal
    return info


def chat_generation_of(result: StarsResult, reporting: Reporting) -> ChatGeneration:
    """Return an answer as a message."""
    said = _message_of(result)
    message = AIMessage(
        content=_content_of(result),
        additional_kwargs=_extras_of(result),
        tool_calls=[
            make_tool_call(name=call.name, args=call.arguments, id=call.id)
            for call in said.tool_calls
        ],
        invalid_tool_calls=[
            invalid_tool_call(name=call.name, args=call.text, id=None, error=call.error)
            for call in said.invalid_tool_calls
        ],
        usage_metadata=usage_metadata_of(result, reporting),
        response_metadata=metadata_of(result, reporting),
    )
    return ChatGeneration(message=message, generation_info=_generation_info(result))


def chat_chunk_of(
    event: SegmentEvent, reporting: Reporting, calls: list[ToolCallChunk]
) -> ChatGenerationChunk:
    """Return an accepted segment as a chunk of the message; the last one has the metadata."""
    content: str | list[str | dict[Any, Any]] = event.content or ""
    extras: dict[str, Any] = {}
    if event.reasoning:
        extras["reasoning_content"] = event.reasoning
    if event.result is None:
        return ChatGenerationChunk(
            message=AIMessageChunk(
                content=content, additional_kwargs=extras, tool_call_chunks=calls
            )
        )
    result = event.result
    if (refusal := refusal_in(result)) is not None:
        extras["refusal"] = refusal
        if _has_block(result):
            content = blocks_of(event.content or "", refusal)
    message = AIMessageChunk(
        content=content,
        additional_kwargs=extras,
        tool_call_chunks=calls,
        usage_metadata=usage_metadata_of(result, reporting),
        response_metadata=metadata_of(result, reporting),
        chunk_position="last",
    )
    return ChatGenerationChunk(message=message, generation_info=_generation_info(result))


def usage_metadata_of(result: StarsResult, reporting: Reporting) -> UsageMetadata:
    """Return token counts, with those of the reasoning if there is any."""
    counts = _token_usage(result)
    usage = UsageMetadata(
        input_tokens=counts["prompt_tokens"],
        output_tokens=counts["completion_tokens"],
        total_tokens=counts["total_tokens"],
    )
    if reasoning := _message_of(result).reasoning:
        num_tokens = min(reporting.num_tokens(reasoning), counts["completion_tokens"])
        usage["output_token_details"] = OutputTokenDetails(reasoning=num_tokens)
    return usage


def llm_output_of(results: Sequence[StarsResult], settings: StarsConfig) -> dict[str, Any]:
    """Return the usage and the model name for all answers to one call."""
    totals: Counter[str] = Counter()
    for result in results:
        totals.update(_token_usage(result))
    return {"token_usage": dict(totals), "model_name": name_of_model(settings)}


def combined(llm_outputs: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    """Return the usage of several calls in total, and the model name.

    Args:
        llm_outputs: Those of `llm_output_of`; None for streamed and for cached answers.
    """
    totals: Counter[str] = Counter()
    known = [output for output in llm_outputs if output]
    for output in known:
        totals.update(output["token_usage"])
    return {**known[-1], "token_usage": dict(totals)} if known else {}


def metadata_of(result: StarsResult, reporting: Reporting) -> dict[str, Any]:
    """Return the metadata of an answer under LangChain's names, and our own under "stars"."""
    account = account_of(result, trace=reporting.trace)
    usage, reason = account.pop("usage"), account.pop("finish_reason")
    token_usage = _token_usage(result)
    costs = {name: count for name, count in usage.items() if name not in token_usage}
    return {
        "model_name": name_of_model(reporting.settings),
        "model_provider": "stars",
        "finish_reason": reason,
        "normalized_finish_reason": _NORMALIZED.get(reason, "other"),
        "token_usage": token_usage,
        "stars": {**account, **costs, "rejected_tokens": num_rejected_tokens(result)},
    }


def _token_usage(result: StarsResult) -> dict[str, int]:
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    usage = usage_of(result)
    return {name: usage[name] for name in names}


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
