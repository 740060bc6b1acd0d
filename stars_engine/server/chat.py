"""`/v1/chat/completions`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from sse_starlette import ServerSentEvent
from starlette.responses import Response

from stars_engine.integrations import ToolNames
from stars_engine.messages import ToolCall
from stars_engine.server.accounts import (
    account_of,
    finish_reason_of,
    refusal_of,
    segment_of,
    usage_of,
)
from stars_engine.server.calls import EngineRequest, naming_fields, new_call
from stars_engine.server.conversations import chat_of, check_one_grammar, grammar_of, naming
from stars_engine.server.delivery import DONE, accepted, event_stream, sse, until_disconnect
from stars_engine.server.errors import ApiError, JsonResponse
from stars_engine.server.facts import facts_of
from stars_engine.server.requests import ChatBody
from stars_engine.server.state import State, state_of
from stars_engine.types import SegmentEvent, StarsResult

router = APIRouter()


@router.post(
    "/v1/chat/completions", response_model=None, responses={200: {"model": ChatCompletion}}
)
async def create_chat_completion(body: ChatBody, request: Request) -> Response:
    """Answer a conversation, whole or as a stream of accepted segments."""
    state = state_of(request)
    call = _call_of(body, state)
    facts_of(request).note_call(call.model.name, call.id, call.sampling)
    if body.stream:
        stream = await call.stream()
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        chunks = _Chunks(call, include_usage=include_usage)
        return event_stream(request, chunks.of(accepted(request, stream)), state.params)
    results = await until_disconnect(request, call.results())
    facts = facts_of(request)
    for result in results:
        facts.note_result(result)
    completion = ChatCompletion.model_validate(
        {
            "id": call.id,
            "object": "chat.completion",
            "created": call.created,
            "model": call.model.name,
            "system_fingerprint": call.model.fingerprint,
            "choices": [_choice_of(result, call) for result in results],
            "usage": usage_of(results),
        }
    )
    return JsonResponse(completion.model_dump(mode="json", exclude_unset=True))


def _call_of(body: ChatBody, state: State) -> EngineRequest:
    model = state.models.get(body.model)
    fields = {
        "prompt": "messages",
        "function": ".function",
        "grammar": "response_format",
        "chat_template_kwargs": "stars.chat_template_kwargs",
        "continue_final_message": "stars.continue_final_message",
    }
    if body.max_completion_tokens is not None:
        fields["max_tokens"] = "max_completion_tokens"
    with naming_fields(fields):
        chat, names = chat_of(body)
    with naming("response_format"):
        grammar = grammar_of(body.response_format)
    check_one_grammar("response_format", grammar, body.stars, chat)
    if body.max_completion_tokens is not None and body.max_tokens is not None:
        message = "max_tokens and max_completion_tokens are one setting. Hint: give one"
        raise ApiError(400, message, code="invalid_value", param="max_tokens")
    # Stop strings of the model could end JSON early.
    stop = () if grammar is not None and body.stop is None else None
    return new_call(
        model,
        model.engine,
        [chat],
        body,
        state.params,
        prefix="chatcmpl-",
        fields=fields,
        names=names,
        grammar=grammar,
        max_tokens=body.max_completion_tokens,
        stop=stop,
    )


def _choice_of(result: StarsResult, call: EngineRequest) -> dict[str, Any]:
    said = result.message
    assert said is not None, "answers to conversations have a message"
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if said.tool_calls and not said.content else said.content,
        "refusal": refusal_of(result),
        "annotations": [],
    }
    if said.reasoning:
        message["reasoning_content"] = said.reasoning
    if said.tool_calls:
        message["tool_calls"] = [_tool_call_of(tool_call) for tool_call in said.tool_calls]
    return {
        "index": result.sample_index,
        "finish_reason": finish_reason_of(result),
        "logprobs": None,
        "message": message,
        "stars": account_of(result, segments=call.options.segments),
    }


def _tool_call_of(tool_call: ToolCall) -> dict[str, Any]:
    arguments = json.dumps(tool_call.arguments, ensure_ascii=False)
    function = {"name": tool_call.name, "arguments": arguments}
    return {"id": tool_call.id, "type": "function", "function": function}


class _Chunks:
    """The chunks of a stream, as true deltas: what is sent is accepted, and never changes.

    Args:
        call: The call.
        include_usage: Whether the stream ends with the usage.
    """

    def __init__(self, call: EngineRequest, *, include_usage: bool) -> None:
        self._call, self._include_usage = call, include_usage
        self._names: ToolNames = call.names

    async def of(self, events: AsyncIterator[SegmentEvent]) -> AsyncIterator[ServerSentEvent]:
        """Yield the chunks of the events of a stream."""
        results = []
        for index in range(self._call.sampling.n):
            yield self._chunk([_delta(index, {"role": "assistant", "content": ""})])
        async for event in events:
            for choice in self._choices(event):
                yield self._chunk([choice])
            if event.result is not None:
                results.append(event.result)
        if self._include_usage:
            yield self._chunk([], usage=usage_of(results))
        yield DONE

    def _choices(self, event: SegmentEvent) -> Sequence[dict[str, Any]]:
        """Return what an event adds to its choice, and the end of the choice."""
        event = self._names.event(event)
        index, with_segments = event.sample_index, self._call.options.segments
        delta: dict[str, Any] = {}
        if event.reasoning:
            delta["reasoning_content"] = event.reasoning
        if event.content:
            delta["content"] = event.content
        choices = []
        if with_segments and event.segment is not None:
            about = {"segment": segment_of(event.segment)}
            choices.append({**_delta(index, delta), "stars": about})
        elif delta:
            choices.append(_delta(index, delta))
        if event.result is not None:
            choices += self._end(event.result)
        return choices

    def _end(self, result: StarsResult) -> list[dict[str, Any]]:
        index, choices = result.sample_index, []
        assert result.message is not None
        for number, tool_call in enumerate(result.message.tool_calls):
            call = {"index": number, **_tool_call_of(tool_call)}
            choices.append(_delta(index, {"tool_calls": [call]}))
        if (refusal := refusal_of(result)) is not None:
            choices.append(_delta(index, {"refusal": refusal}))
        account = account_of(result, segments=self._call.options.segments, is_stream=True)
        last = {**_delta(index, {}), "finish_reason": finish_reason_of(result), "stars": account}
        return [*choices, last]

    def _chunk(self, choices: list[dict[str, Any]], usage: Any = None) -> ServerSentEvent:
        chunk = {
            "id": self._call.id,
            "object": "chat.completion.chunk",
            "created": self._call.created,
            "model": self._call.model.name,
            "system_fingerprint": self._call.model.fingerprint,
            "choices": choices,
        }
        if self._include_usage:
            chunk["usage"] = usage
        return sse(ChatCompletionChunk.model_validate(chunk))


def _delta(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": None, "logprobs": None}
