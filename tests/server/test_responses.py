"""`/v1/responses` with the official client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.support.servers import HELLO, RunningServer

TOOL = {
    "type": "function",
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"days": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["days"],
        "additionalProperties": False,
    },
    "strict": True,
}


class Film(BaseModel):
    good: bool


def exactly(num_tokens: int) -> dict[str, Any]:
    """Return arguments for an answer of this length."""
    return {
        "max_output_tokens": num_tokens,
        "extra_body": {"stars": {"min_tokens": num_tokens}},
    }


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0) as client:
        yield client


def test_a_response(client: openai.OpenAI) -> None:
    response = client.responses.create(
        model="chat", input="Hello", instructions="Be kind.", **exactly(12)
    )
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    [message] = response.output
    assert message.type == "message"
    assert message.status == "incomplete"
    assert response.output_text == message.content[0].text
    assert response.usage is not None
    assert response.usage.output_tokens == 12
    assert response.usage.output_tokens_details.drafted_tokens >= 12
    assert response.stars["finish_reason"] == "length"


def test_times_are_integers(server: RunningServer) -> None:
    """As in OpenAI's API, though not in its types: typed languages refuse other numbers."""
    with server.http() as client:
        answer = client.post("/v1/responses", json={"model": "chat", "input": "Hi"}).json()
    assert isinstance(answer["created_at"], int)
    assert isinstance(answer["completed_at"], int | None)


def test_streamed_events_build_the_response(client: openai.OpenAI) -> None:
    with client.responses.stream(model="chat", input=HELLO, **exactly(16)) as stream:
        events = list(stream)
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 2
    final = events[-1].response
    assert "".join(deltas) == final.output_text
    assert final.output[0].id == events[2].item.id
    assert [event.sequence_number for event in events] == list(range(len(events)))


@pytest.mark.slow
def test_calls_and_their_results(client: openai.OpenAI) -> None:
    arguments = {"model": "chat", "tools": [TOOL], "max_output_tokens": 300}
    response = client.responses.create(input="Hi", tool_choice="required", **arguments)
    [call] = response.output
    assert call.type == "function_call"
    assert call.name == "weather"
    assert 0 <= json.loads(call.arguments)["days"] <= 9
    assert response.status == "completed"
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    turns = [*HELLO, *response.output, output]
    following = client.responses.create(
        input=turns, tool_choice="none", model="chat", tools=[TOOL], **exactly(4)
    )
    assert following.output_text
    allowed = [{"type": "function", "name": "weather"}]
    choice = {"type": "allowed_tools", "mode": "required", "tools": allowed}
    [call] = client.responses.create(input="Hi", tool_choice=choice, **arguments).output
    assert call.name == "weather"
    with client.responses.stream(
        input="Hi", tool_choice={"type": "function", "name": "weather"}, **arguments
    ) as stream:
        stream.until_done()
        [streamed] = stream.get_final_response().output
    assert streamed.name == "weather"
    assert 0 <= json.loads(streamed.arguments)["days"] <= 9


def test_structured_output(client: openai.OpenAI) -> None:
    response = client.responses.parse(
        model="chat", input="Hi", text_format=Film, max_output_tokens=100
    )
    assert isinstance(response.output_parsed, Film)


def test_what_needs_a_store_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="send the whole conversation") as refused:
        client.responses.create(model="chat", input="Hi", previous_response_id="resp_1")
    assert refused.value.param == "previous_response_id"
    assert client.responses.create(model="chat", input="Hi", store=True, max_output_tokens=4)
