"""`/v1/completions`: texts are continued as they are, whatever the model's chat template."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from openai.types import Completion
from sse_starlette import ServerSentEvent
from starlette.responses import Response

from stars_engine.server.accounts import account_of, finish_reason_of, segment_of, usage_of
from stars_engine.server.calls import EngineRequest, new_call
from stars_engine.server.delivery import DONE, accepted, event_stream, sse, until_disconnect
from stars_engine.server.errors import ApiError, JsonResponse
from stars_engine.server.facts import facts_of
from stars_engine.server.requests import CompletionBody
from stars_engine.server.state import state_of
from stars_engine.types import Prompt, SegmentEvent, StarsResult, TokenIds

router = APIRouter()


@router.post("/v1/completions", response_model=None, responses={200: {"model": Completion}})
async def create_completion(body: CompletionBody, request: Request) -> Response:
    """Continue texts, whole or as a stream of accepted segments."""
    state = state_of(request)
    model = state.models.get(body.model)
    for name in ("continue_final_message", "chat_template_kwargs"):
        if getattr(body.stars, name):
            message = f"stars.{name} is for conversations. Hint: use /v1/chat/completions"
            raise ApiError(400, message, code="invalid_value", param=f"stars.{name}")
    prompts = prompts_of(body.prompt)
    fields = {"prompt": "prompt"}
    call = new_call(
        model, model.raw_engine, prompts, body, state.params, prefix="cmpl-", fields=fields
    )
    facts = facts_of(request)
    facts.note_call(model.name, call.id, call.sampling)
    if body.stream:
        stream = await call.stream()
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        chunks = _chunks_of(call, accepted(request, stream), include_usage=include_usage)
        return event_stream(request, chunks, state.params)
    results = await until_disconnect(request, call.results())
    for result in results:
        facts.note_result(result)
    completion = _completion_of(call, [_choice_of(result, call) for result in results])
    completion.usage = usage_of(results)
    return JsonResponse(completion.model_dump(mode="json", exclude_unset=True))


def prompts_of(prompt: str | list[str] | list[int] | list[list[int]]) -> list[Prompt]:
    """Return the prompts of a request: one or many, as texts or as token ids."""
    if isinstance(prompt, str):
        return [prompt]
    if prompt and isinstance(prompt[0], int):
        return [TokenIds(prompt)]
    return [item if isinstance(item, str) else TokenIds(item) for item in prompt]


def _completion_of(call: EngineRequest, choices: list[dict[str, Any]]) -> Completion:
    # Not validated: OpenAI's type has no null for the finish reason, but its streams do.
    return Completion.construct(
        id=call.id,
        object="text_completion",
        created=call.created,
        model=call.model.name,
        system_fingerprint=call.model.fingerprint,
        choices=choices,
    )


def _choice_of(result: StarsResult, call: EngineRequest) -> dict[str, Any]:
    return {
        **_text(call.index_of(result.prompt_index, result.sample_index), result.text),
        "finish_reason": finish_reason_of(result),
        "stars": account_of(result, segments=call.options.segments),
    }


async def _chunks_of(
    call: EngineRequest, events: AsyncIterator[SegmentEvent], *, include_usage: bool
) -> AsyncIterator[ServerSentEvent]:
    results = []

    def chunk(choice: dict[str, Any]) -> ServerSentEvent:
        completion = _completion_of(call, [choice])
        if include_usage:
            completion.usage = None
        return sse(completion)

    async for event in events:
        index = call.index_of(event.prompt_index, event.sample_index)
        choice = _text(index, event.text)
        if call.options.segments and event.segment is not None:
            yield chunk({**choice, "stars": {"segment": segment_of(event.segment)}})
        elif event.text:
            yield chunk(choice)
        if event.result is not None:
            results.append(event.result)
            with_segments = call.options.segments
            account = account_of(event.result, segments=with_segments, is_stream=True)
            reason = finish_reason_of(event.result)
            yield chunk({**_text(index, ""), "finish_reason": reason, "stars": account})
    if include_usage:
        completion = _completion_of(call, [])
        completion.usage = usage_of(results)
        yield sse(completion)
    yield DONE


def _text(index: int, text: str) -> dict[str, Any]:
    return {"index": index, "text": text, "finish_reason": None, "logprobs": None}
