"""The official client of OpenAI's API, unchanged, against the server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator

import openai
import pytest
from pydantic import BaseModel

from stars_engine import Chat, SamplingParams
from tests.support.servers import HELLO, RunningServer

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {"days": {"type": "integer", "minimum": 0, "maximum": 9}},
            "required": ["days"],
        },
    },
}


class Film(BaseModel):
    good: bool
    year: int


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def aclient(server: RunningServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=server.base_url, api_key="none", max_retries=0
    ) as client:
        yield client


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["embedded", "chat"]
    assert client.models.retrieve("chat").id == "chat"
    with pytest.raises(openai.NotFoundError, match="use one of 'embedded', 'chat'"):
        client.models.retrieve("gpt-4")


def test_chat_is_the_engines_answer(client: openai.OpenAI, server: RunningServer) -> None:
    engine = server.model("chat").engine
    sampling = engine.sampling.replace(seed=5, n=2, max_tokens=20)
    results = engine.generate(Chat(HELLO), sampling=sampling)
    answer = client.chat.completions.create(
        model="chat", messages=HELLO, seed=5, n=2, max_completion_tokens=20
    )
    assert [choice.message.content for choice in answer.choices] == [
        result.message.content for result in results if result.message is not None
    ]
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert {choice.finish_reason for choice in answer.choices} <= {"length", "stop"}
    usage = answer.usage
    assert usage is not None
    assert usage.prompt_tokens == results[0].usage.num_prompt_tokens
    assert usage.completion_tokens == sum(result.usage.num_kept_tokens for result in results)
    assert usage.completion_tokens_details is not None
    drafted = sum(result.usage.num_drafted_tokens for result in results)
    assert usage.completion_tokens_details.drafted_tokens == drafted
    assert answer.choices[0].stars["seed"] == 5
    assert answer.choices[0].stars["reward"] == results[0].reward


def test_stream_is_made_of_accepted_segments(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="chat", messages=HELLO, seed=3)
    with client.chat.completions.create(
        model="chat",
        messages=HELLO,
        seed=3,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"stars": {"segments": True}},
    ) as stream:
        chunks = list(stream)
    deltas = [choice for chunk in chunks for choice in chunk.choices]
    assert deltas[0].delta.role == "assistant"
    assert len(deltas) > 3  # several segments, not one burst
    assert "".join(choice.delta.content or "" for choice in deltas) == (
        whole.choices[0].message.content
    )
    segments = [
        choice.stars["segment"] for choice in deltas if "segment" in getattr(choice, "stars", {})
    ]
    assert {segment["verdict"] for segment in segments} == {"accepted"}
    assert [choice.finish_reason for choice in deltas if choice.finish_reason] == [
        whole.choices[0].finish_reason
    ]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_streams_of_several_answers(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="chat", messages=HELLO, seed=3, n=3)
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(
        model="chat", messages=HELLO, seed=3, n=3, stream=True
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


async def test_async_client(aclient: openai.AsyncOpenAI) -> None:
    whole = await aclient.chat.completions.create(model="chat", messages=HELLO, seed=4)
    stream = await aclient.chat.completions.create(
        model="chat", messages=HELLO, seed=4, stream=True
    )
    text = "".join(
        [choice.delta.content or "" async for chunk in stream for choice in chunk.choices]
    )
    assert text == whole.choices[0].message.content


def test_tools(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="chat", messages=HELLO, tools=[TOOL], tool_choice="required", max_tokens=300, seed=1
    )
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    call = choice.message.tool_calls[0]
    assert call.function.name == "weather"
    assert 0 <= json.loads(call.function.arguments)["days"] <= 9
    # The client's own message goes back as it is, with the result of the call.
    messages = [
        *HELLO,
        choice.message,
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    following = client.chat.completions.create(
        model="chat", messages=messages, tools=[TOOL], tool_choice="none", max_tokens=4
    )
    assert following.choices[0].message.content is not None


def test_allowed_tools(client: openai.OpenAI) -> None:
    """Only the allowed ones are offered to the model."""
    tools = [{"type": "function", "function": {"name": f"other_{i}"}} for i in range(9)]
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "weather"}}]}
    answer = client.chat.completions.create(
        model="chat",
        messages=HELLO,
        tools=[*tools, TOOL],
        tool_choice={"type": "allowed_tools", "allowed_tools": allowed},
        max_tokens=300,
        seed=1,
    )
    names = [call.function.name for call in answer.choices[0].message.tool_calls]
    assert set(names) == {"weather"}
    allowed["tools"][0]["function"]["name"] = "nothing"
    with pytest.raises(openai.BadRequestError, match="tool_choice names 'nothing'"):
        client.chat.completions.create(
            model="chat",
            messages=HELLO,
            tools=[TOOL],
            tool_choice={"type": "allowed_tools", "allowed_tools": allowed},
        )


def test_streamed_tools(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="chat",
        messages=HELLO,
        tools=[TOOL],
        tool_choice={"type": "function", "function": {"name": "weather"}},
        max_tokens=300,
        seed=1,
    ) as stream:
        stream.until_done()
        [choice] = stream.get_final_completion().choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls[0].function.name == "weather"
    assert not choice.message.content


def test_structured_output(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="chat", messages=HELLO, response_format=Film, seed=2, max_tokens=200
    )
    assert isinstance(answer.choices[0].message.parsed, Film)
    answer = client.chat.completions.create(
        model="chat",
        messages=HELLO,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": {"enum": ["yes", "no"]}},
        },
        max_tokens=60,
    )
    assert json.loads(answer.choices[0].message.content or "") in ("yes", "no")


def test_completions(client: openai.OpenAI, server: RunningServer) -> None:
    engine = server.model("embedded").engine
    prompts = ["This movie", "The plot"]
    sampling = SamplingParams(seed=1, max_tokens=16, n=2, stop=("!",))
    results = engine.generate(prompts, sampling=sampling)
    arguments = {"model": "embedded", "prompt": prompts, "max_tokens": 16}
    arguments |= {"seed": 1, "n": 2, "stop": "!"}
    answer = client.completions.create(**arguments)
    assert [choice.text for choice in answer.choices] == [result.text for result in results]
    texts = ["", "", "", ""]
    reasons = {}
    for chunk in client.completions.create(**arguments, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason
    assert texts == [result.text for result in results]
    assert reasons == {choice.index: choice.finish_reason for choice in answer.choices}


def test_completions_continue_texts_whatever_the_template(
    client: openai.OpenAI, server: RunningServer
) -> None:
    codec = server.model("chat").engine.model.codec
    ids = codec.encode_prompt("A text")
    by_text, by_ids = (
        client.completions.create(model="chat", prompt=prompt, seed=1, max_tokens=8)
        for prompt in ("A text", ids)
    )
    assert by_text.usage is not None
    assert by_text.usage.prompt_tokens == len(ids)
    assert by_text.choices[0].text == by_ids.choices[0].text


def test_errors_are_those_of_the_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="'logprobs' is not supported") as refused:
        client.chat.completions.create(model="chat", messages=HELLO, logprobs=True)
    assert refused.value.param == "logprobs"
    assert refused.value.code == "unsupported_parameter"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="chat", messages=HELLO, max_tokens=10**6)
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as refused:  # before a stream begins
        client.chat.completions.create(model="chat", messages=HELLO, max_tokens=10**6, stream=True)
    assert refused.value.code == "context_length_exceeded"
