"""Convert engine results to LlamaIndex completions and chat responses, whole and streamed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import closing
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    ContentBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from stars_engine import Message, SegmentEvent, StarsEngine, StarsResult
from stars_engine.integrations import (
    ToolNames,
    account_of,
    asettled,
    settled,
    usage_of,
    warn_of_cut_calls,
)


def completion_of(result: StarsResult, *, trace: bool) -> CompletionResponse:
    """Return an answer as text; for conversations, without the reasoning."""
    return CompletionResponse(
        text=result.text if result.message is None else result.message.content,
        raw=account_of(result, trace=trace),
        additional_kwargs=usage_of(result),
    )


def chat_of(result: StarsResult, *, trace: bool) -> ChatResponse:
    """Return an answer as a message with reasoning and tool calls."""
    message = warn_of_cut_calls(result).message
    if message is None:
        message = Message(role="assistant", content=result.text)
    return ChatResponse(
        message=_chat_message(message),
        raw=account_of(result, trace=trace),
        additional_kwargs=usage_of(result),
    )


def completions_of(
    engine: StarsEngine, call: dict[str, Any], *, trace: bool
) -> Generator[CompletionResponse, None, None]:
    """Yield the answer so far with each accepted segment."""
    text = ""
    with closing(engine.stream(**call)) as events:
        for event in settled(events):
            text += _delta(event)
            yield _completion_so_far(text, event, trace=trace)


async def acompletions_of(
    engine: StarsEngine, call: dict[str, Any], *, trace: bool
) -> AsyncGenerator[CompletionResponse, None]:
    """Do the same without blocking the event loop."""
    text = ""
    async with engine.astream(**call) as events:
        async for event in asettled(events):
            text += _delta(event)
            yield _completion_so_far(text, event, trace=trace)


def chats_of(
    engine: StarsEngine, call: dict[str, Any], names: ToolNames, *, trace: bool
) -> Generator[ChatResponse, None, None]:
    """Yield the message so far with each accepted segment; the last one has its calls."""
    text = reasoning = ""
    with closing(engine.stream(**call)) as events:
        for event in settled(events):
            text, reasoning = text + _delta(event), reasoning + (event.reasoning or "")
            yield _chat_so_far(text, reasoning, names.event(event), trace=trace)


async def achats_of(
    engine: StarsEngine, call: dict[str, Any], names: ToolNames, *, trace: bool
) -> AsyncGenerator[ChatResponse, None]:
    """Do the same without blocking the event loop."""
    text = reasoning = ""
    async with engine.astream(**call) as events:
        async for event in asettled(events):
            text, reasoning = text + _delta(event), reasoning + (event.reasoning or "")
            yield _chat_so_far(text, reasoning, names.event(event), trace=trace)


def _delta(event: SegmentEvent) -> str:
    return event.text if event.content is None else event.content


def _completion_so_far(text: str, event: SegmentEvent, *, trace: bool) -> CompletionResponse:
    if event.result is None:
        return CompletionResponse(text=text, delta=_delta(event))
    return completion_of(event.result, trace=trace).model_copy(update={"delta": _delta(event)})


def _chat_so_far(text: str, reasoning: str, event: SegmentEvent, *, trace: bool) -> ChatResponse:
    if event.result is None:
        message = Message(role="assistant", content=text, reasoning=reasoning or None)
        response = ChatResponse(message=_chat_message(message), delta=_delta(event))
    else:
        response = chat_of(event.result, trace=trace).model_copy(update={"delta": _delta(event)})
    if event.reasoning:  # LlamaIndex's agents read it here
        response.additional_kwargs["thinking_delta"] = event.reasoning
    return response


def _chat_message(message: Message) -> ChatMessage:
    blocks: list[ContentBlock] = []
    if message.reasoning:
        blocks.append(ThinkingBlock(content=message.reasoning))
    blocks.append(TextBlock(text=message.content))
    blocks += [
        ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=call.arguments)
        for call in message.tool_calls
    ]
    extra = {}
    if message.invalid_tool_calls:
        extra["invalid_tool_calls"] = [call.model_dump() for call in message.invalid_tool_calls]
    return ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks, additional_kwargs=extra)
