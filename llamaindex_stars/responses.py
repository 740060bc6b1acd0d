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

# The key, in messages of streams, of calls with their arguments as far as they are written.
UNFINISHED_CALLS = "unfinished_tool_calls"


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
    answer = _Answer(names, trace=trace)
    with closing(engine.stream(**call)) as events:
        for event in settled(events):
            yield answer.so_far(event)


async def achats_of(
    engine: StarsEngine, call: dict[str, Any], names: ToolNames, *, trace: bool
) -> AsyncGenerator[ChatResponse, None]:
    """Do the same without blocking the event loop."""
    answer = _Answer(names, trace=trace)
    async with engine.astream(**call) as events:
        async for event in asettled(events):
            yield answer.so_far(event)


def _delta(event: SegmentEvent) -> str:
    return event.text if event.content is None else event.content


def _completion_so_far(text: str, event: SegmentEvent, *, trace: bool) -> CompletionResponse:
    if event.result is None:
        return CompletionResponse(text=text, delta=_delta(event))
    return completion_of(event.result, trace=trace).model_copy(update={"delta": _delta(event)})


class _Answer:
    """An answer to a conversation, as far as it is written."""

    def __init__(self, names: ToolNames, *, trace: bool) -> None:
        self._names, self._trace = names, trace
        self._text = self._reasoning = ""
        self._calls: list[dict[str, str]] = []

    def so_far(self, event: SegmentEvent) -> ChatResponse:
        """Return the response after an event; the last one has the calls."""
        event = self._names.event(event)
        self._text += _delta(event)
        self._reasoning += event.reasoning or ""
        for delta in event.tool_calls:
            if delta.name is not None:
                self._calls.append({"name": delta.name, "arguments": ""})
            self._calls[delta.index]["arguments"] += delta.arguments
        if event.result is None:
            message = Message(
                role="assistant", content=self._text, reasoning=self._reasoning or None
            )
            response = ChatResponse(message=_chat_message(message), delta=_delta(event))
            if self._calls:
                written = [dict(call) for call in self._calls]
                response.message.additional_kwargs[UNFINISHED_CALLS] = written
        else:
            made = chat_of(event.result, trace=self._trace)
            response = made.model_copy(update={"delta": _delta(event)})
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
