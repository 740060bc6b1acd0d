"""The endpoint `/v1/responses`."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import APIRouter, Request
from openai.types.responses import Response as ResponseObject
from sse_starlette import ServerSentEvent
from starlette.responses import Response

from stars_engine.server.calls import EngineRequest, naming_fields, new_call
from stars_engine.server.conversations import check_one_grammar, grammar_of, naming, new_chat
from stars_engine.server.delivery import accepted, event_stream, report, sse, until_disconnect
from stars_engine.server.errors import JsonResponse
from stars_engine.server.facts import facts_of
from stars_engine.server.responses.bodies import ResponsesBody
from stars_engine.server.responses.events import Event, ResponseEvents
from stars_engine.server.responses.frame import opened
from stars_engine.server.responses.items import conversation_of
from stars_engine.server.state import State, state_of
from stars_engine.types import SegmentEvent, StarsResult

router = APIRouter()

# Of the request, by the engine's name for them.
_FIELDS = {
    "prompt": "input",
    "messages": "input",
    "grammar": "text.format",
    "max_tokens": "max_output_tokens",
    "chat_template_kwargs": "stars.chat_template_kwargs",
    "continue_final_message": "stars.continue_final_message",
}


@router.post("/v1/responses", response_model=None, responses={200: {"model": ResponseObject}})
async def create_response(body: ResponsesBody, request: Request) -> Response:
    """Answer a conversation, whole or as a stream of accepted segments."""
    state = state_of(request)
    call = _call_of(body, state)
    facts = facts_of(request)
    facts.note_call(call.model.name, call.id, call.sampling)
    events = ResponseEvents(call, opened(body, call))
    if body.stream:
        stream = await call.stream()
        sent = _events_of(request, events, accepted(request, stream))
        return event_stream(request, sent, state.params)
    [result] = await until_disconnect(request, call.results())
    facts.note_result(result)
    list(events.add(_whole(result)))  # completes the response
    return JsonResponse(events.response)


def _call_of(body: ResponsesBody, state: State) -> EngineRequest:
    model = state.models.get(body.model)
    messages, names = conversation_of(body)
    with naming_fields(_FIELDS):
        chat = new_chat(messages, body.tool_specs, names, body)
    with naming("text.format"):
        grammar = grammar_of(body.response_format)
    check_one_grammar("text.format", grammar, body.stars, chat)
    return new_call(
        model,
        model.engine,
        [chat],
        body,
        state.params,
        prefix="resp_",
        fields=_FIELDS,
        names=names,
        n=1,
        grammar=grammar,
        max_tokens=body.max_output_tokens,
        stop=None if grammar is None else (),
    )


async def _events_of(
    request: Request, events: ResponseEvents, emitted: AsyncIterator[SegmentEvent]
) -> AsyncIterator[ServerSentEvent]:
    try:
        for event in events.begin():
            yield _sse(event)
        async for segment in emitted:
            for event in events.add(segment):
                yield _sse(event)
    except Exception as error:  # noqa: BLE001 - the client gets every error as an event
        for event in events.fail(report(facts_of(request), error).body["error"]):
            yield _sse(event)


def _sse(event: Event) -> ServerSentEvent:
    return sse(event, event["type"])


def _whole(result: StarsResult) -> SegmentEvent:
    """Return an event that adds a whole answer."""
    assert result.message is not None, "answers to conversations have a message"
    return SegmentEvent(
        text=result.text,
        content=result.message.content,
        reasoning=result.message.reasoning,
        result=result,
    )
