"""Answers of random models: tool calls, reasoning, text."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from pydantic import BaseModel, Field

from stars_engine import (
    AlignParams,
    Chat,
    ConfigError,
    ConstantSchedule,
    Message,
    RegexGrammar,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    Tool,
    TransformersModel,
)
from stars_engine.chat.conversations import read_conversation
from stars_engine.chat.formats import (
    HERMES,
    LLAMA,
    format_of,
)
from stars_engine.config.grammars import schema_of
from stars_engine.tokenization.codec import Codec
from tests.support.chat import (
    CLOCK,
    TOOLS,
    USER,
    WITH_TOOLS,
    accepts,
    answer,
    check_calls,
    engine_of,
)
from tests.support.chat_templates import FAMILIES, random_llama, tokenizer_of
from tests.support.random_models import random_model
from tests.support.random_schemas import random_schema


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FAMILIES, None])
def test_forced_calls_are_of_the_tool_and_valid(name: str | None) -> None:
    with engine_of(name, max_attempts=2) as engine:
        for choice in ("weather", "clock"):
            chat = Chat([USER], tools=TOOLS, tool_choice=choice)
            for seed in range(3):
                # A random model would never end its reasoning.
                closing = engine.model.codec.tokenizer.convert_tokens_to_ids("</think>")
                bias = {closing: 100.0} if name == "thinking" else None
                result = answer(engine, chat, seed, logit_bias=bias)
                check_calls(result, {choice})
                assert len(result.message.tool_calls) == 1  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_TOOLS)
def test_forced_calls_with_random_schemas(name: str) -> None:
    rng = random.Random(0)
    ended = 0
    with engine_of(name) as engine:
        closing = engine.model.codec.tokenizer.convert_tokens_to_ids("</think>")
        sampling = engine.sampling.replace(
            logit_bias={closing: 100.0} if name == "thinking" else None, max_tokens=600
        )
        tools = []
        for index in range(25):
            schema = {"type": "array"}
            while schema["type"] != "object":
                schema = {"type": "none", **random_schema(rng)}
            tools.append(Tool(name=f"tool_{index}", parameters=schema))
        chats = [Chat([USER], tools=[CLOCK, tool], tool_choice=tool.name) for tool in tools]
        for tool, result in zip(tools, engine.generate(chats, sampling=sampling), strict=True):
            if result.finish_reason == "length":
                continue
            ended += 1
            assert result.message is not None
            [call] = result.message.tool_calls
            assert call.name == tool.name
            jsonschema.validate(
                call.arguments, tool.parameters, cls=jsonschema.Draft202012Validator
            )
    assert ended >= 20


class Node(BaseModel):
    name: Literal["a"]
    kids: list[Node] = []


class Circle(BaseModel):
    kind: Literal["circle"] = "circle"
    radius: float


class Square(BaseModel):
    kind: Literal["square"] = "square"


class Drawing(BaseModel):
    tree: Node
    shapes: list[Annotated[Circle | Square, Field(discriminator="kind")]] = []
    path: Path | None = None


@pytest.mark.parametrize("name", [*WITH_TOOLS, "gemma", None])
def test_recursive_arguments_and_tagged_unions(name: str | None) -> None:
    codec = Codec(tokenizer_of(name))
    form = format_of(codec.tokenizer.chat_template)
    tool = Tool(name="draw", parameters=schema_of(Drawing))
    chat = Chat([USER], tools=[tool], tool_choice="draw")

    def is_allowed(**arguments: Any) -> bool:
        return accepts(chat, codec, form.write([("draw", arguments)]))

    tree = {"name": "a", "kids": [{"name": "a", "kids": []}, {"name": "a"}]}
    shapes = [{"kind": "circle", "radius": 1.5}, {"kind": "square"}]
    assert is_allowed(tree=tree, shapes=shapes, path="a/b")
    assert is_allowed(tree={"name": "a"}, path=None)
    assert not is_allowed(tree={"name": "a", "kids": [1.2]})
    assert not is_allowed(tree={"name": "a", "kids": [{}]})
    assert not is_allowed(tree={"name": "a"}, shapes=[{}])
    assert not is_allowed(tree={"name": "a"}, shapes=[{"radius": 1}])


@pytest.mark.slow
def test_arguments_of_random_models_validate() -> None:
    models = {f"tool_{seed}": random_model(seed, unsupported=False) for seed in range(2000, 2020)}
    ended = 0
    with engine_of("hermes") as engine:
        tools = [Tool(name=name, parameters=schema_of(model)) for name, model in models.items()]
        tools = [tool for tool in tools if len(json.dumps(tool.parameters)) < 5000]
        chats = [Chat([USER], tools=[tool], tool_choice=tool.name) for tool in tools]
        sampling = engine.sampling.replace(max_tokens=500)
        for tool, result in zip(tools, engine.generate(chats, sampling=sampling), strict=True):
            if result.finish_reason == "length":
                continue
            ended += 1
            assert result.message is not None
            [call] = result.message.tool_calls
            models[call.name].model_validate_json(json.dumps(call.arguments))
            assert call.name == tool.name
    assert ended >= 12


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"properties": {"a": {"type": "array", "uniqueItems": True}}}, "`uniqueItems`.*/a: "),
        ({"properties": {"a": {"$ref": "#/$defs/none"}}}, r"`\$ref` at #/properties/a"),
        ({"properties": {"a": {"not": {}}}, "required": ["a"]}, "no value satisfies .*#/a"),
        ({"properties": {"a": {"pattern": r"\bx"}}}, "`pattern` at #/properties/a"),
    ],
)
def test_arguments_without_a_grammar_are_refused(parameters: Any, match: str) -> None:
    tool = Tool(name="odd", parameters={"type": "object", **parameters})
    with engine_of("hermes") as engine:
        for choice in ("auto", "odd"):
            chat = Chat([USER], tools=[CLOCK, tool], tool_choice=choice)
            with pytest.raises(ConfigError, match=f"arguments of 'odd' .*{match}") as caught:
                engine.generate(chat)
            assert "constrain_tools=False" in str(caught.value)
        free = Chat([USER], tools=[CLOCK, tool], constrain_tools=False)
        assert answer(engine, free, max_tokens=4).token_ids


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hermes", "mistral", "gemma"])
def test_required_calls_may_be_several_unless_forbidden(name: str) -> None:
    counts = []
    with engine_of(name) as engine:
        for seed in range(8):
            for parallel in (True, False):
                chat = Chat(
                    [USER], tools=TOOLS, tool_choice="required", parallel_tool_calls=parallel
                )
                result = answer(engine, chat, seed, max_tokens=900)
                check_calls(result, {"weather", "clock"})
                assert result.message is not None
                counts.append((parallel, len(result.message.tool_calls)))
    assert {count for parallel, count in counts if not parallel} == {1}
    assert max(count for _, count in counts) > 1


@pytest.mark.parametrize("name", [*WITH_TOOLS, "gemma", None])
def test_auto_is_text_or_calls(name: str | None) -> None:
    codec = Codec(tokenizer_of(name))
    form = format_of(codec.tokenizer.chat_template)
    chat = Chat([USER], tools=TOOLS)
    one, two = [("clock", {})], [("clock", {}), ("weather", {"city": "Ål", "days": 3})]
    assert accepts(chat, codec, "Well, {it} <is> warm.\n")
    assert accepts(chat, codec, "")
    assert accepts(chat, codec, form.write(one))
    assert accepts(chat, codec, form.write(two)) == (form is not LLAMA)
    assert accepts(chat, codec, "Well.\n" + form.write(one))  # without a marker, all of it is text
    for wrong in ([("nobody", {})], [("clock", {"a": 1})], [("weather", {"city": "Oslo"})]):
        assert not accepts(chat, codec, form.write(wrong))
    opening = form.marker or form.first
    assert not accepts(chat, codec, opening + "no call")

    must = Chat([USER], tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    assert accepts(must, codec, form.write(one))
    assert not accepts(must, codec, form.write(two))
    assert not accepts(must, codec, "Well.")
    if name == "thinking":
        assert accepts(must, codec, "<think>Hm.</think>\n\n" + form.write(one))
        assert not accepts(must, codec, "<think>Hm.</think>\n\nWell.")


def test_none_is_text() -> None:
    with engine_of("hermes") as engine:
        chat = Chat([USER], tools=TOOLS, tool_choice="none")
        result = answer(engine, chat, max_tokens=8)
        assert read_conversation(chat, engine.model.codec).grammar is None
    assert result.message is not None
    assert not result.message.tool_calls


def test_unconstrained_calls_are_read() -> None:
    forced = RegexGrammar(pattern=r'<tool_call>\{"name": "nobody", "arguments": \{\}\}</tool_call>')
    with engine_of("hermes") as engine:
        chat = Chat([USER], tools=TOOLS, constrain_tools=False)
        result = answer(engine, chat, grammar=forced)
    assert result.message is not None
    [invalid] = result.message.invalid_tool_calls
    assert invalid.name == "nobody"
    assert result.finish_reason == "stop"


def test_reasoning_is_kept_apart() -> None:
    forced = RegexGrammar(pattern="<think>\nHm, cold[.]\n</think>\n\nSeven[.]")
    with engine_of("thinking") as engine:
        result = answer(engine, Chat([USER]), grammar=forced)
        assert result.message == Message(role="assistant", content="Seven.", reasoning="Hm, cold.")
        assert result.text.startswith("<think>")


@pytest.mark.slow
def test_a_whole_turn_with_a_tool() -> None:
    with engine_of("mistral") as engine:
        chat = Chat([USER], tools=TOOLS, tool_choice="weather")
        called = answer(engine, chat).message
        assert called is not None
        [call] = called.tool_calls
        result = Message(role="tool", content="7", tool_call_id=call.id)
        said = answer(engine, Chat([USER, called, result], tools=TOOLS, tool_choice="none"))
    assert said.message is not None


def test_a_prefill_with_open_reasoning_continues_it() -> None:
    forced = RegexGrammar(pattern="see[.]</think>Hi[.]")
    with engine_of("thinking") as engine:
        prefill = Message(role="assistant", content="<think>\nLet me")
        chat = Chat([USER, prefill], continue_final_message=True)
        result = answer(engine, chat, grammar=forced)
    assert result.message == Message(role="assistant", content="Hi.", reasoning="see.")


def test_reasoning_is_read_only_if_the_template_has_it() -> None:
    forced = RegexGrammar(pattern="<think> is an HTML-like tag[.]")
    with engine_of("phi") as engine:
        result = answer(engine, Chat([USER]), grammar=forced)
    assert result.message == Message(role="assistant", content="<think> is an HTML-like tag.")


def test_reasoning_between_control_tokens() -> None:
    tokenizer = tokenizer_of("thinking")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    codec = Codec(tokenizer)
    one = HERMES.write([("clock", {})])
    for choice in ("auto", "clock"):
        chat = Chat([USER], tools=TOOLS, tool_choice=choice)
        assert accepts(chat, codec, f"<think>Hm.</think>\n\n{one}")
        assert accepts(chat, codec, one)
    assert accepts(Chat([USER], tools=TOOLS), codec, "<think>Hm.</think>Well.")
    assert not accepts(Chat([USER], tools=TOOLS), codec, "<think>Hm.")
    ids = codec.encode_rendered(f"<think>Hm.</think>\n\n{one}")
    replies = read_conversation(Chat([USER], tools=TOOLS), codec).replies
    assert replies is not None
    read = replies.read((), ids, codec.completion_text((), ids)[0])
    assert (read.reasoning, read.content) == ("Hm.", "")
    assert [call.name for call in read.tool_calls] == ["clock"]


@pytest.mark.parametrize("name", ["gemma", "phi", "hermes", None])
def test_forced_calls_are_never_rejected(name: str | None) -> None:
    hard: dict[str, Any] = {"schedule": ConstantSchedule(value=1e9), "on_exhausted": "raise"}
    with engine_of(name, **hard) as engine:
        result = answer(engine, Chat([USER], tools=TOOLS, tool_choice="clock"))
    assert {segment.verdict for segment in result.segments} == {"unjudged"}
    assert result.reward is None


def test_a_fallback_text_is_content_in_every_state() -> None:
    prefill = Message(role="assistant", content="<think>I")
    fallback = {"on_exhausted": "fallback", "fallback_text": "SORRY"}
    with engine_of("thinking", schedule=ConstantSchedule(value=1e9), **fallback) as engine:
        chat = Chat([USER, prefill], continue_final_message=True)
        forced = RegexGrammar(pattern="[a-z]{12}</think>[A-Z]{12}")
        result = answer(engine, chat, grammar=forced)
    assert result.message is not None
    assert result.finish_reason == "fallback"
    assert result.message.content.endswith("SORRY")
    assert "SORRY" not in (result.message.reasoning or "")


@pytest.mark.parametrize("prefill", ["<think>I wonder", "<think>I wonder</think>The film"])
def test_the_reward_does_not_read_the_reasoning_of_a_prefill(prefill: str) -> None:
    read: list[str] = []
    tokenizer = tokenizer_of("thinking")
    engine = StarsEngine(
        StarsConfig(
            model=TransformersModel(model=random_llama(tokenizer), tokenizer=tokenizer),
            reward=lambda _, completion: float(read.append(completion) or 0),  # type: ignore[func-returns-value]
            align=AlignParams(schedule=ConstantSchedule(value=0.0), segment_len=4),
        )
    )
    pattern = "hm[.]{9}</think>[A-Z]{12}" if prefill.endswith("wonder") else "[A-Z]{12}"
    sampling = SamplingParams(grammar=RegexGrammar(pattern=pattern), max_tokens=60, seed=0)
    chat = Chat([USER, Message(role="assistant", content=prefill)], continue_final_message=True)
    [result] = engine.generate(chat, sampling=sampling)
    assert read
    assert all("wonder" not in completion for completion in read)
    assert result.message is not None
    prose = prefill.rpartition("</think>")[2].replace("<think>I wonder", "")
    assert prose + result.message.content in read


def test_continued_text_needs_a_marker_for_calls() -> None:
    prefill = Message(role="assistant", content="The JSON is ")
    for name in ("llama", "gemma"):
        chat = Chat([USER, prefill], tools=TOOLS, continue_final_message=True)
        with engine_of(name) as engine:
            result = answer(engine, chat, grammar=RegexGrammar(pattern='[{]"name": "Bob"[}]'))
        assert result.message == Message(role="assistant", content='{"name": "Bob"}')


def test_a_forced_call_that_is_cut_off_is_an_invalid_one() -> None:
    with engine_of("gemma") as engine:
        chat = Chat([USER], tools=TOOLS, tool_choice="clock")
        result = answer(engine, chat, max_tokens=6)
    assert result.message is not None
    assert not result.message.content
    assert [call.text for call in result.message.invalid_tool_calls] == [result.text]


def test_an_answer_without_text_or_calls() -> None:
    dumped = {"role": "assistant", "content": "x", "tool_calls": None, "refusal": None}
    assert Message(**dumped) == Message(role="assistant", content="x")
