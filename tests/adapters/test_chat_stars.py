"""`ChatStars` in agents and chains: tools, schemas, refusals, streams, usage."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from blockbuster import blockbuster_ctx
from langchain.agents import create_agent
from langchain.agents.middleware import wrap_model_call
from langchain.agents.structured_output import ToolStrategy
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    ChatMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages.tool import invalid_tool_call
from langchain_core.tools import tool
from pydantic import BaseModel, Field

from langchain_stars import ChatStars, StarsLLM, StarsRefusalError, refusal_of
from langchain_stars.messages import read_messages
from stars_engine import AlignmentError, Chat, ConfigError, PromptError, TransformersModel
from stars_engine.integrations import ToolNames
from tests.support.chat_templates import random_llama, tokenizer_of
from tests.support.event_loops import LoopTicker
from tests.support.scripted import CLOSING, NEVER, random_chat_model, scripted

ASKED = [SystemMessage("Be kind."), HumanMessage("How warm is it?")]


@tool
def weather(city: str, days: int = 1) -> str:
    """Tells the weather."""
    return f"{city}: 7 degrees for {days} days"


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=8)
    size: int = Field(ge=0, le=9)


class Node(BaseModel):
    """A tree."""

    v: int
    kids: list[Node] = Field(default=[], max_length=1)


def judge(prompt: str, completion: str) -> float:
    return float(len(completion) % 3)


@pytest.fixture(scope="module")
def random_chat() -> Iterator[Callable[..., ChatStars]]:
    """Chats with one random model."""
    model = random_chat_model()
    fields = {"schedule": {"kind": "none"}, "segment_len": 8, "max_tokens": 40, "seed": 0}
    fields["num_candidates"] = 4

    def make(kind: Any = ChatStars, **given: Any) -> Any:
        return kind(model=model, reward=judge, **(fields | given))

    kept = make().load()
    yield make
    kept.close()


def saying(answer: str, family: str = "hermes", **fields: Any) -> ChatStars:
    """Return a chat of a model that writes what a script returns."""
    given = {"schedule": {"kind": "none"}, "segment_len": 8, **fields}
    return ChatStars(model=scripted(lambda _: answer, family), reward=judge, **given)


def whole(chunks: Any) -> AIMessageChunk:
    """Return the sum of chunks."""
    total = None
    for chunk in chunks:
        total = chunk if total is None else total + chunk
    assert isinstance(total, AIMessageChunk)
    return total


# --- one answer, by every way ---


@pytest.mark.slow
def test_all_call_methods_give_the_answer_of_the_engine(random_chat: Callable[..., Any]) -> None:
    chat, llm = random_chat(), random_chat(StarsLLM)
    [result] = chat.engine().generate(
        Chat(read_messages(ASKED)), sampling=chat.settings().sampling, align=chat.settings().align
    )
    assert result.message is not None
    said = result.message.content
    assert chat.invoke(ASKED).text == said
    assert whole(chat.stream(ASKED)).text == said
    assert chat.batch([ASKED] * 3)[2].text == said
    assert asyncio.run(chat.ainvoke(ASKED)).text == said
    # Conversations reach the plain model's template too, and not as text.
    assert llm.invoke(ASKED) == said
    assert "".join(llm.stream(ASKED)) == said
    assert llm.batch([ASKED, ASKED]) == [said, said]
    assert llm.invoke("System: Be kind.\nHuman: How warm is it?") != said


@pytest.mark.slow
def test_answers_carry_usage_and_trace(random_chat: Callable[..., Any]) -> None:
    chat = random_chat(schedule={"kind": "constant", "value": 1.5}, max_attempts=8)
    message = chat.invoke(ASKED, trace=True)
    metadata, usage = message.response_metadata, message.usage_metadata
    assert usage is not None
    ours = metadata["stars"]
    attempts = [attempt for segment in ours["segments"] for attempt in segment["attempts"]]
    rejected = [attempt for attempt in attempts if attempt["verdict"] == "rejected"]
    assert rejected
    assert ours["rejected_tokens"] == sum(attempt["num_tokens"] for attempt in rejected)
    assert ours["drafted_tokens"] == ours["rejected_tokens"] + usage["output_tokens"]
    assert "output_token_details" not in usage  # a breakdown of the output, which has no reasoning
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert ours["num_forced"] == sum(seg["verdict"] == "forced" for seg in ours["segments"])
    assert metadata["finish_reason"] == "length"
    assert metadata["normalized_finish_reason"] == "length"
    assert metadata["model_name"] == "in memory"
    json.dumps(metadata)
    assert "".join(segment["text"] for segment in ours["segments"]) == message.text
    short = chat.invoke(ASKED).response_metadata
    assert "segments" not in short["stars"]
    assert len(json.dumps(short)) < 600
    counts = {"prompt_tokens": usage["input_tokens"], "completion_tokens": usage["output_tokens"]}
    assert short["token_usage"] == {**counts, "total_tokens": usage["total_tokens"]}
    assert whole(chat.stream(ASKED)).response_metadata["token_usage"] == short["token_usage"]
    traced = random_chat(trace=True).invoke(ASKED).response_metadata
    assert traced["stars"]["segments"]


def test_stream_in_a_call_means_callbacks_for_tokens(random_chat: Callable[..., Any]) -> None:
    text = random_chat().invoke(ASKED).text
    seen: list[str] = []

    class Tokens(BaseCallbackHandler):
        def on_llm_new_token(self, token: str, **kwargs: Any) -> None:
            seen.append(token)

    assert random_chat().invoke(ASKED, {"callbacks": [Tokens()]}, stream=True).text == text
    assert "".join(seen) == text
    assert random_chat().invoke(ASKED, stream=False).text == text


@pytest.mark.slow
def test_settings_apply_wherever_they_are_given(random_chat: Callable[..., Any]) -> None:
    chat = random_chat()
    cold = chat.invoke(ASKED, temperature=0.01)
    assert cold.text == chat.bind(temperature=0.01).invoke(ASKED).text
    assert cold.text == random_chat(temperature=0.01).invoke(ASKED).text
    assert cold.text != chat.invoke(ASKED).text
    assert len(chat.generate([ASKED], n=3).generations[0]) == 3
    assert chat.invoke(ASKED, timeout=1e-6).response_metadata["finish_reason"] == "deadline"
    assert random_chat(timeout=5).settings().align.deadline_s == 5
    with pytest.raises(ConfigError, match="did you mean `segment_len`"):
        chat.invoke(ASKED, segment_length=4)
    with pytest.raises(ConfigError, match="timeout"):
        random_chat(timeout=5, deadline_s=6)
    with pytest.raises(ConfigError, match="n=1"):
        list(chat.stream(ASKED, n=2))
    with pytest.warns(UserWarning, match="api_key is for remote models"):
        random_chat(api_key="secret")


def test_stop_strings_without_echo(random_chat: Callable[..., Any]) -> None:
    for kind in (ChatStars, StarsLLM):
        llm = random_chat(kind)
        text = _text(llm.invoke("Hello"))
        assert "Hello" not in text
        stop = text[len(text) // 2 :][:3]  # as many tokens
        cut = _text(llm.invoke("Hello", stop=[stop]))
        assert cut == text[: text.index(stop)] != text
        assert "".join(map(_text, llm.stream("Hello", stop=[stop]))) == cut
        assert _text(random_chat(kind, stop=[stop]).invoke("Hello")) == cut


def test_the_profile_is_true(random_chat: Callable[..., Any]) -> None:
    profile = random_chat().profile
    assert profile["tool_calling"]
    assert profile["tool_choice"]
    assert not profile["structured_output"]  # together with tools
    assert not profile["image_inputs"]
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
    with pytest.raises(ConfigError, match="'image_url', but these models read only text"):
        random_chat().invoke([HumanMessage([picture])])


def test_messages_of_every_form_are_read() -> None:
    calls = [{"name": "weather", "args": {"city": "Oslo"}, "id": "1", "type": "tool_call"}]
    broken = [
        {"name": "weather", "args": "{", "id": "2", "error": "cut", "type": "invalid_tool_call"}
    ]
    said = [
        {"type": "reasoning", "reasoning": "Cold."},
        {"type": "text", "text": "It is"},
        " cold.",
    ]
    answer = AIMessage(said, tool_calls=calls, invalid_tool_calls=broken)  # type: ignore[arg-type]
    [developer, read, result] = read_messages(
        [
            ChatMessage("Be kind.", role="developer"),
            answer,
            ToolMessage([{"type": "json", "json": {"a": 1}}], tool_call_id="1", status="error"),
        ]
    )
    assert developer.role == "system"
    assert (read.content, read.reasoning) == ("It is cold.", "Cold.")
    assert read.tool_calls[0].arguments == {"city": "Oslo"}
    assert read.invalid_tool_calls[0].text == '{"name": "weather", "arguments": {'
    assert (result.content, result.tool_call_id) == ('{"a": 1}', "1")
    with pytest.raises(PromptError, match="unsupported message type RemoveMessage"):
        read_messages([RemoveMessage(id="1")])


# --- tools ---


@pytest.mark.parametrize(
    "choice",
    [
        "weather",
        True,
        {"type": "function", "function": {"name": "weather"}},
        {"type": "tool", "name": "weather"},
        {"function": {"name": "weather"}},
    ],
)
def test_a_chosen_tool_is_called(random_chat: Callable[..., Any], choice: Any) -> None:
    chat = random_chat(max_tokens=200, logit_bias=CLOSING).bind_tools([weather], tool_choice=choice)
    message = chat.invoke(ASKED)
    assert [call["name"] for call in message.tool_calls] == ["weather"]
    streamed = whole(chat.stream(ASKED))
    assert streamed.tool_calls == message.tool_calls
    assert not message.text


def test_invalid_tool_choices(random_chat: Callable[..., Any]) -> None:
    with pytest.raises(PromptError, match="unknown tool_choice='wether'"):
        random_chat().bind_tools([weather], tool_choice="wether")
    for empty in ({}, {"type": "tool"}, {"type": "function", "function": {}}):
        with pytest.raises(PromptError, match="unknown tool_choice="):
            random_chat().bind_tools([weather], tool_choice=empty)
    with pytest.raises(PromptError, match="'web_search' runs on its provider's servers"):
        random_chat().bind_tools([{"type": "web_search"}])
    bound = random_chat().bind_tools([weather], tool_choice="none")
    assert not bound.invoke(ASKED).tool_calls
    with pytest.raises(ConfigError, match=r"tool_choice 'required' needs tools\. Hint: add tools"):
        random_chat().invoke(ASKED, tool_choice="required")


def test_calls_in_answers_and_streams_are_the_same() -> None:
    written = '{"name": "weather", "arguments": {"city": "Ålesund", "days": 2}}'
    answer = f"Let me see.\n<tool_call>\n{written}\n</tool_call>"
    chat = saying(answer).bind_tools([weather], seed=7)  # equal seeds give equal ids
    message, streamed = chat.invoke(ASKED), whole(chat.stream(ASKED))
    for got in (message, streamed):
        assert got.text == "Let me see."
        [made] = got.tool_calls
        assert (made["name"], made["args"]) == ("weather", {"city": "Ålesund", "days": 2})
        assert got.response_metadata["finish_reason"] == "tool_calls"
    assert streamed.tool_calls[0]["id"] == message.tool_calls[0]["id"]
    assert not any("tool_call>" in chunk.text for chunk in chat.stream(ASKED))


def test_invalid_calls_are_reported_and_not_made() -> None:
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": 5}}\n</tool_call>'
    unknown = '<tool_call>\n{"name": "whether", "arguments": {"city": "Oslo"}}\n</tool_call>'
    for name, text in (("whether", unknown), ("weather", call.replace("}}", "}"))):
        chat = saying(text).bind_tools([weather], strict=False)
        for message in (chat.invoke(ASKED), whole(chat.stream(ASKED))):
            assert message.tool_calls == []
            [invalid] = message.invalid_tool_calls
            assert invalid["name"] == name
            assert "city" in (invalid["args"] or "")
            [read] = read_messages([message])
            assert f'"name": "{name}", "arguments": {{"city": ' in read.invalid_tool_calls[0].text


def test_invalid_calls_of_other_providers_keep_their_names() -> None:
    broken = invalid_tool_call(name="look up", args='{"city": 5', id="1", error=None)
    names = ToolNames(["look up"])
    [read] = read_messages([AIMessage("", invalid_tool_calls=[broken])], names)
    [call] = read.invalid_tool_calls
    assert call.name == "look_up"
    assert call.text == '{"name": "look_up", "arguments": {"city": 5'


@pytest.mark.slow
def test_an_agent_loop_through_the_real_engine(random_chat: Callable[..., Any]) -> None:
    """A random model calls a tool, because it must, and then answers."""
    chat = random_chat(max_tokens=200, logit_bias=CLOSING)

    @wrap_model_call  # type: ignore[arg-type]
    def tool_first(request: Any, handler: Any) -> Any:
        called = any(isinstance(message, ToolMessage) for message in request.messages)
        return handler(request.override(tool_choice="none" if called else "required"))

    agent = create_agent(chat, [weather], middleware=[tool_first])
    messages = agent.invoke({"messages": ASKED[1:]})["messages"]
    assert [message.type for message in messages] == ["human", "ai", "tool", "ai"]
    assert "degrees" in messages[2].text
    assert messages[3].response_metadata["stars"]["reward"] is not None


def test_reasoning_is_separate_from_content() -> None:
    chat = saying("<think>\nIt is winter.\n</think>\n\nCold.", "thinking")
    for message in (chat.invoke(ASKED), whole(chat.stream(ASKED))):
        assert message.text == "Cold."
        assert message.additional_kwargs["reasoning_content"] == "It is winter."
        assert any(block["type"] == "reasoning" for block in message.content_blocks)
    llm = StarsLLM(config=chat.settings())
    assert llm.invoke(ASKED) == "Cold."
    [[generation]] = llm.generate_prompt([llm._convert_input(ASKED)]).generations
    assert generation.generation_info is not None
    assert generation.generation_info["reasoning"] == "It is winter."


# --- schemas ---


@pytest.mark.slow
@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_structured_output(random_chat: Callable[..., Any], method: Any) -> None:
    chat = random_chat(max_tokens=120).with_structured_output(City, method=method)
    assert isinstance(chat.invoke(ASKED), City)
    assert isinstance(asyncio.run(chat.ainvoke(ASKED)), City)
    raw = random_chat(max_tokens=120).with_structured_output(City, method=method, include_raw=True)
    answer = raw.invoke(ASKED)
    assert isinstance(answer["parsed"], City)
    assert answer["parsing_error"] is None
    assert isinstance(answer["raw"], AIMessage)


def test_impossible_schemas(random_chat: Callable[..., Any]) -> None:
    with pytest.raises(
        ValueError, match="expected one of json_schema, function_calling, json_mode"
    ):
        random_chat().with_structured_output(City, method="xml")
    with pytest.raises(ValueError, match="needs a schema"):
        random_chat().with_structured_output()
    with pytest.raises(ValueError, match="response_format"):
        random_chat().invoke(ASKED, response_format={"type": "xml"})
    shape = {
        "type": "json_schema",
        "json_schema": {"name": "c", "schema": City.model_json_schema()},
    }
    City.model_validate_json(random_chat(max_tokens=120).invoke(ASKED, response_format=shape).text)


def test_truncated_json_is_reported(random_chat: Callable[..., Any]) -> None:
    chat = random_chat(max_tokens=4)
    with pytest.raises(OutputParserException, match="cut off by max_tokens"):
        chat.with_structured_output(City).invoke(ASKED)
    answer = chat.with_structured_output(City, include_raw=True).invoke(ASKED)
    assert isinstance(answer["parsing_error"], OutputParserException)


def test_a_truncated_number_is_not_an_answer(random_chat: Callable[..., Any]) -> None:
    schema = {"title": "V", "type": "integer", "minimum": 1000, "maximum": 9_999_999}
    for max_tokens in (1, 2, 3):
        chat = random_chat(max_tokens=max_tokens).with_structured_output(schema)
        with pytest.raises(OutputParserException, match="cut off by max_tokens"):
            chat.invoke(ASKED)
    assert (
        1000 <= random_chat(max_tokens=40).with_structured_output(schema).invoke(ASKED) <= 9_999_999
    )


def test_schemas_are_not_changed() -> None:
    """Types that LangChain's conversion cannot express: no object, a recursive model."""
    numbers = {"title": "Numbers", "type": "array", "items": {"enum": [1, 2]}, "minItems": 1}
    assert saying("[2, 1]").with_structured_output(numbers).invoke(ASKED) == [2, 1]
    with pytest.raises(ValueError, match="needs the schema of an object"):
        saying("[2]").with_structured_output(numbers, method="function_calling")
    tree = '{"v": 1, "kids": [{"v": 2, "kids": []}]}'
    assert saying(tree).with_structured_output(Node).invoke(ASKED).kids[0].v == 2
    call = f'<tool_call>\n{{"name": "Node", "arguments": {tree}}}\n</tool_call>'
    [made] = saying(call).bind_tools([Node], tool_choice="Node").invoke(ASKED).tool_calls
    assert Node(**made["args"]).kids[0].v == 2


def test_stop_strings_do_not_cut_json() -> None:
    chat = saying('{"name": "Oslo", "size": 3}', stop=[","])
    structured = chat.with_structured_output(City.model_json_schema())
    assert structured.invoke(ASKED) == {"name": "Oslo", "size": 3}
    for method in ("json_schema", "function_calling"):
        with pytest.raises(OutputParserException, match="cut off by a stop string"):
            chat.with_structured_output(City, method=method).invoke(ASKED, stop=['"'])
    exact = saying('{"name": "Oslo", "size": 3}', max_tokens=27)
    assert exact.with_structured_output(City).invoke(ASKED).size == 3


def test_json_of_a_model_whose_template_opens_reasoning() -> None:
    tokenizer = tokenizer_of("thinking")
    opening = "<|im_start|>assistant\n<think>\n"
    template: Any = tokenizer.chat_template
    tokenizer.chat_template = template.replace("'<|im_start|>assistant\\n'", repr(opening))
    assert tokenizer.chat_template != template
    model = TransformersModel(model=random_llama(tokenizer), tokenizer=tokenizer)
    fields = {"schedule": {"kind": "none"}, "max_tokens": 120, "seed": 0, "logit_bias": CLOSING}
    chat = ChatStars(model=model, reward=judge, **fields)
    assert isinstance(chat.with_structured_output(City).invoke(ASKED), City)
    assert chat.invoke(ASKED).additional_kwargs["reasoning_content"]


def test_agents_with_a_schema(random_chat: Callable[..., Any]) -> None:
    chat = random_chat(max_tokens=200, logit_bias=CLOSING)
    agent = create_agent(chat, [], response_format=ToolStrategy(City))
    assert isinstance(agent.invoke({"messages": ASKED[1:]})["structured_response"], City)
    plain = create_agent(chat, [], response_format=City)
    assert isinstance(plain.invoke({"messages": ASKED[1:]})["structured_response"], City)


# --- refusals ---


@pytest.mark.slow
def test_errors_have_types_for_fallbacks(random_chat: Callable[..., Any]) -> None:
    never = {"schedule": NEVER, "max_attempts": 2}
    stopped = random_chat(on_exhausted="stop", **never)
    for message in (stopped.invoke(ASKED), whole(stopped.stream(ASKED))):
        assert message.text == ""
        assert "none of 2 drafts was accepted" in (refusal_of(message) or "")
        assert message.response_metadata["normalized_finish_reason"] == "refusal"
    other = random_chat(on_exhausted="fallback", fallback_text="I had rather not.", **never)
    for message in (other.invoke(ASKED), whole(other.stream(ASKED))):
        assert message.text == "I had rather not."
        assert refusal_of(message) == "I had rather not."
    assert refusal_of(random_chat().invoke(ASKED)) is None
    raising = random_chat(on_exhausted="raise", **never)
    for ask in (
        lambda: raising.invoke(ASKED),
        lambda: list(raising.stream(ASKED)),
        lambda: asyncio.run(raising.ainvoke(ASKED)),
        lambda: random_chat(StarsLLM, on_exhausted="raise", **never).invoke("Hello"),
    ):
        with pytest.raises(StarsRefusalError) as caught:
            ask()
        assert isinstance(caught.value, AlignmentError)
        assert caught.value.result is not None
    # A stream that fails has not ended before: another model may answer instead.
    both = raising.with_fallbacks([random_chat()], exceptions_to_handle=(StarsRefusalError,))
    assert whole(both.stream(ASKED)).text == random_chat().invoke(ASKED).text
    # JSON by a grammar is judged here, or nothing could be refused.
    structured = random_chat(on_exhausted="stop", judge="all", **never).with_structured_output(City)
    with pytest.raises(StarsRefusalError, match="refused"):
        structured.invoke(ASKED)


# --- caches, copies ---


@pytest.mark.slow
def test_cache_keys_differ_between_calls(random_chat: Callable[..., Any]) -> None:
    cache = InMemoryCache()
    for kind in (ChatStars, StarsLLM):
        llm = random_chat(kind, cache=cache)
        other = random_chat(kind, cache=cache, seed=3)
        runs = [
            lambda llm=llm: llm.invoke(ASKED),
            lambda llm=llm: llm.invoke(ASKED, seed=1),
            lambda llm=llm: llm.bind(temperature=0.5).invoke(ASKED),
            lambda llm=llm: llm.invoke(ASKED, reward_prompt="other"),
            lambda other=other: other.invoke(ASKED),
            lambda llm=llm: asyncio.run(llm.ainvoke(ASKED, seed=2)),
        ]
        before = len(cache._cache)
        first = [run() for run in runs]
        assert len(cache._cache) == before + len(runs)
        num_steps = llm.engine().stats().num_steps
        again = [run() for run in runs]
        assert llm.engine().stats().num_steps == num_steps
        assert [_text(a) for a in first] == [_text(b) for b in again]


def test_models_in_memory_have_distinct_identities(random_chat: Callable[..., Any]) -> None:
    models = [random_chat_model(), random_chat_model()]
    made = [ChatStars(model=model, reward=judge, schedule={"kind": "none"}) for model in models]
    assert made[0]._identifying_params != made[1]._identifying_params
    assert made[0]._identifying_params == made[0].model_copy()._identifying_params
    llm = random_chat(StarsLLM, cache=InMemoryCache())
    llm.invoke([HumanMessage("Hi")])
    [key, _] = next(iter(llm.cache._cache))
    assert llm.invoke(key.removeprefix("\ufdd0")) != llm.invoke([HumanMessage("Hi")])


def _text(answer: Any) -> str:
    return answer if isinstance(answer, str) else answer.text


@pytest.mark.slow
def test_copies_give_equal_answers() -> None:
    chat = ChatStars(max_tokens=8, seed=1)
    text = chat.invoke("Hello").text
    for again in (copy.deepcopy(chat), pickle.loads(pickle.dumps(chat)), chat.model_copy()):
        assert again.invoke("Hello").text == text
    chat.close()


# --- many at once ---


@pytest.mark.slow
def test_callers_share_steps(random_chat: Callable[..., Any]) -> None:
    chat = random_chat(segment_len=4)
    prompts = [[HumanMessage(f"Number {index}")] for index in range(32)]
    before = chat.engine().stats().num_steps
    alone = [chat.invoke(prompt).text for prompt in prompts]
    one_by_one = chat.engine().stats().num_steps - before

    async def together() -> list[str]:
        return [message.text for message in await chat.abatch(prompts)]

    before = chat.engine().stats().num_steps
    assert asyncio.run(together()) == alone
    assert chat.engine().stats().num_steps - before < one_by_one / 8
    before = chat.engine().stats().num_steps
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(lambda prompt: chat.invoke(prompt).text, prompts)) == alone
    assert chat.engine().stats().num_steps - before < one_by_one / 4


@pytest.mark.slow
def test_one_bad_prompt_of_a_batch_fails_alone(random_chat: Callable[..., Any]) -> None:
    too_long = "x" * 20_000
    for llm in (random_chat(), random_chat(StarsLLM)):
        good, bad, other = llm.batch(["a", too_long, "b"], return_exceptions=True)
        assert isinstance(bad, PromptError)
        assert _text(good) == _text(llm.invoke("a"))
        assert _text(other) == _text(llm.invoke("b"))
        answers = asyncio.run(llm.abatch(["a", too_long], return_exceptions=True))
        assert _text(answers[0]) == _text(good)
        assert isinstance(answers[1], PromptError)
        with pytest.raises(PromptError):
            llm.batch(["a", too_long])


@pytest.mark.slow
async def test_the_event_loop_is_never_blocked(random_chat: Callable[..., Any]) -> None:
    chat = random_chat()
    tools = chat.bind_tools([weather])
    with blockbuster_ctx():
        async with LoopTicker() as ticks:
            text = (await chat.ainvoke(ASKED)).text
            assert ticks.count > 3
            chunks = [chunk.text async for chunk in chat.astream(ASKED)]
            await tools.ainvoke(ASKED)
            events = [event async for event in chat.astream_events(ASKED, version="v2")]
    assert "".join(chunks) == text
    streamed = [e["data"]["chunk"].text for e in events if e["event"] == "on_chat_model_stream"]
    assert "".join(streamed) == text
    assert len(streamed) > 2


async def test_cancelled_calls_free_the_engine(random_chat: Callable[..., Any]) -> None:
    chat = random_chat(max_tokens=4_000, segment_len=4)
    threads = threading.active_count()
    async for _ in chat.astream(ASKED):
        break
    task = asyncio.create_task(chat.ainvoke(ASKED))
    await asyncio.sleep(0.05)
    task.cancel()
    stream = chat.stream(ASKED)
    next(stream)
    stream.close()
    for _ in range(200):
        if chat.engine().stats().num_active == 0:
            break
        await asyncio.sleep(0.01)
    assert chat.engine().stats().num_active == 0
    num_steps = chat.engine().stats().num_steps
    await asyncio.sleep(0.2)
    assert chat.engine().stats().num_steps == num_steps
    assert threading.active_count() <= threads


@pytest.mark.slow
def test_rejected_text_reaches_no_callback(random_chat: Callable[..., Any]) -> None:
    class Notes(BaseCallbackHandler):
        def __init__(self) -> None:
            self.tokens: list[str] = []

        def on_llm_new_token(self, token: str, **_: Any) -> None:
            self.tokens.append(token)

    for kind in (ChatStars, StarsLLM):
        notes = Notes()
        llm = random_chat(kind, schedule={"kind": "constant", "value": 1.5}, max_attempts=8)
        text = "".join(map(_text, llm.stream(ASKED, config={"callbacks": [notes]})))
        assert "".join(notes.tokens) == text
        assert text == _text(llm.invoke(ASKED))
        quiet = Notes()
        llm.batch([ASKED] * 2, config={"callbacks": [quiet]})
        assert quiet.tokens == []


def test_conversations_are_counted_as_rendered(
    random_chat: Callable[..., Any],
) -> None:
    usage = random_chat().invoke(ASKED).usage_metadata
    assert random_chat().get_num_tokens_from_messages(ASKED) == usage["input_tokens"]
    usage = random_chat().bind_tools([weather]).invoke(ASKED).usage_metadata
    assert random_chat().get_num_tokens_from_messages(ASKED, [weather]) == usage["input_tokens"]


def test_tokens_are_counted_by_the_models_own_tokenizer(random_chat: Callable[..., Any]) -> None:
    for kind in (ChatStars, StarsLLM):
        assert random_chat(kind).get_num_tokens("Hello 🥶") == len("Hello 🥶".encode())
