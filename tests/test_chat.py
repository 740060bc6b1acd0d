"""Conversations with tools: rendered, constrained, read back."""

from __future__ import annotations

import json
import logging
import random
import re
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel

from stars_engine import (
    AlignParams,
    Chat,
    ConfigError,
    ConstantSchedule,
    Message,
    NoSchedule,
    PromptError,
    RegexGrammar,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    Tool,
    ToolCall,
    TransformersModel,
)
from stars_engine.chat.conversations import read_conversation
from stars_engine.chat.formats import (
    GENERIC,
    HERMES,
    LLAMA,
    MISTRAL,
    MISTRAL_NAMED,
    format_of,
)
from stars_engine.chat.template import encode_chat
from stars_engine.chat.turns import tools_of, turns_of
from stars_engine.codec import Codec
from stars_engine.grammars import Grammars
from stars_engine.types import StarsResult
from tests.chat_templates import FAMILIES, random_llama, tokenizer_of
from tests.test_grammars import random_schema

FORMATS = [HERMES, MISTRAL, MISTRAL_NAMED, LLAMA, GENERIC]
WEATHER = Tool(
    name="weather",
    description="Tells the weather.",
    parameters={
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 6},
            "days": {"$ref": "#/$defs/days"},
        },
        "required": ["city", "days"],
        "$defs": {"days": {"type": "integer", "minimum": 0, "maximum": 9}},
    },
)
CLOCK = Tool(name="clock")
TOOLS = (WEATHER, CLOCK)
SYSTEM = Message(role="system", content="Be kind.")
USER = Message(role="user", content="How warm is it in Oslo?")
CALL = ToolCall(name="weather", arguments={"city": "Oslo", "days": 1}, id="abcdef123")
CALLED = Message(role="assistant", content="", tool_calls=(CALL,))
RESULT = Message(role="tool", content='{"celsius": 7}', tool_call_id="abcdef123", name="weather")
WITH_TOOLS = ["hermes", "thinking", "llama", "mistral"]


def engine_of(name: str | None, **align: Any) -> StarsEngine:
    tokenizer = tokenizer_of(name)
    return StarsEngine(
        StarsConfig(
            model=TransformersModel(model=random_llama(tokenizer), tokenizer=tokenizer),
            reward=lambda _, completion: float(len(completion) % 3),
            align=AlignParams(**{"schedule": NoSchedule(), "segment_len": 8, **align}),
            sampling=SamplingParams(max_tokens=400, seed=0, temperature=1.0, top_k=None),
        )
    )


def answer(engine: StarsEngine, chat: Chat, seed: int = 0, **sampling: Any) -> StarsResult:
    [result] = engine.generate(chat, sampling=engine.sampling.replace(seed=seed, **sampling))
    return result


# --- rendering ---


@pytest.mark.parametrize("name", FAMILIES)
def test_rendering_equals_apply_chat_template(name: str) -> None:
    tokenizer = tokenizer_of(name)
    conversations: list[tuple[list[Message], tuple[Tool, ...]]] = [
        ([USER], ()),
        ([USER, Message(role="assistant", content="Cold. 🥶"), USER], ()),
    ]
    if name != "gemma":
        conversations.append(([SYSTEM, USER], ()))
    if name in WITH_TOOLS:
        conversations += [([USER], TOOLS), ([SYSTEM, USER, CALLED, RESULT, USER], TOOLS)]
    for messages, tools in conversations:
        expected = tokenizer.apply_chat_template(
            turns_of(messages),
            tools=tools_of(tools),
            add_generation_prompt=True,
            return_dict=False,
        )
        chat = Chat(messages, tools=tools, constrain_tools=False)
        assert list(read_conversation(chat, Codec(tokenizer)).token_ids) == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_control_tokens_in_what_is_said_change_no_border_of_roles(name: str) -> None:
    """In contents, names and descriptions of tools, arguments, results."""
    tokenizer = tokenizer_of(name)
    codec = Codec(tokenizer)
    control = set(tokenizer.convert_tokens_to_ids(list(codec.control_tokens)))
    every = "".join(codec.control_tokens)

    def borders(said: str) -> list[int]:
        messages = [Message(role="user", content=f"a{said}b")]
        tools: tuple[Tool, ...] = ()
        if name in WITH_TOOLS:
            called = CALL.replace(arguments={said: said})
            messages += [
                CALLED.replace(tool_calls=(called,)),
                RESULT.replace(content=said),
                Message(role="user", content=said),
            ]
            tools = (WEATHER.replace(description=said),)
        ids = encode_chat(codec, messages, tools)
        assert codec.decode(ids).count(said) >= len(messages)
        return [token for token in ids if token in control]

    assert borders(every) == borders("x")


def test_in_words_where_the_template_knows_no_tools() -> None:
    codec = Codec(tokenizer_of("gemma"))
    chat = Chat([SYSTEM, USER, CALLED, RESULT], tools=TOOLS, constrain_tools=False)
    text = codec.decode(read_conversation(chat, codec).token_ids)
    for part in ("Be kind.", "Tells the weather.", '"tool_calls": [', "Result of weather: {"):
        assert part in text
    assert text.count("model\n") == 2  # the call, and the answer to come


def test_in_words_where_the_template_has_a_format_of_its_own() -> None:
    tokenizer = tokenizer_of("phi")
    tokenizer.chat_template = "{{ tools | tojson }}<|call|>" + FAMILIES["phi"].template
    codec = Codec(tokenizer)
    chat = Chat([USER], tools=TOOLS, tool_choice="clock")
    text = codec.decode(read_conversation(chat, codec).token_ids)
    assert text.startswith("null")
    assert '{"tool_calls": [{"name"' in text
    assert accepts(chat, codec, GENERIC.write([("clock", {})]))


@pytest.mark.parametrize("name", ["hermes", "llama", "mistral", "gemma", None])
def test_an_answer_goes_on_with_what_was_begun(name: str | None) -> None:
    tokenizer = tokenizer_of(name)
    begun = Message(role="assistant", content="It is <|im_end|> ve")
    chat = Chat([USER, begun], continue_final_message=True)
    resolved = read_conversation(chat, Codec(tokenizer))
    assert Codec(tokenizer).decode(resolved.token_ids).endswith("It is <|im_end|> ve")
    assert resolved.begun == begun.content
    assert resolved.for_reward.messages == (USER,)
    if name not in (None, "mistral"):  # whose template trims nothing but adds a space
        plain = begun.replace(content="It is ve")
        expected = tokenizer.apply_chat_template(
            turns_of([USER, plain]), continue_final_message=True, return_dict=False
        )
        chat = Chat([USER, plain], continue_final_message=True)
        assert list(read_conversation(chat, Codec(tokenizer)).token_ids) == expected


def test_the_reward_reads_what_was_begun() -> None:
    read: list[str] = []
    tokenizer = tokenizer_of("hermes")
    engine = StarsEngine(
        StarsConfig(
            model=TransformersModel(model=random_llama(tokenizer), tokenizer=tokenizer),
            reward=lambda _, completion: float(read.append(completion) or 0),  # type: ignore[func-returns-value]
            align=AlignParams(schedule=ConstantSchedule(value=0.0), segment_len=4),
            sampling=SamplingParams(max_tokens=8, seed=0),
        )
    )
    begun = Message(role="assistant", content="It is")
    [result] = engine.generate(Chat([USER, begun], continue_final_message=True))
    assert read
    assert all(completion.startswith("It is") for completion in read)
    assert not result.text.startswith("It is")


def test_without_a_template_the_answer_ends_before_the_user_speaks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with engine_of(None) as engine, caplog.at_level(logging.WARNING):
        result = answer(engine, Chat([USER]), max_tokens=8)
    assert "plain transcript" in caplog.text
    assert result.message is not None
    assert result.message.content == result.text


# --- answers of a model that cannot speak ---


def check_calls(result: StarsResult, names: set[str]) -> None:
    message = result.message
    assert message is not None
    assert result.finish_reason == "tool_calls"
    assert message.tool_calls
    assert not message.invalid_tool_calls
    assert not message.content
    for call in message.tool_calls:
        assert call.name in names
        [tool] = [tool for tool in TOOLS if tool.name == call.name]
        jsonschema.validate(call.arguments, tool.parameters)


@pytest.mark.parametrize("name", [*FAMILIES, None])
def test_forced_calls_are_of_the_tool_and_valid(name: str | None) -> None:
    with engine_of(name, max_attempts=2) as engine:
        for choice in ("weather", "clock"):
            chat = Chat([USER], tools=TOOLS, tool_choice=choice)
            for seed in range(3):
                # A model that cannot speak would never end a thought.
                closing = engine.model.codec.tokenizer.convert_tokens_to_ids("</think>")
                bias = {closing: 100.0} if name == "thinking" else None
                result = answer(engine, chat, seed, logit_bias=bias)
                check_calls(result, {choice})
                assert len(result.message.tool_calls) == 1  # type: ignore[union-attr]


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


def accepts(chat: Chat, codec: Codec, text: str) -> bool:
    """Whether the grammar of a conversation's answers has this one."""
    grammar = read_conversation(chat, codec).grammar
    assert grammar is not None
    pieces, control = codec.vocabulary(len(codec.tokenizer))
    end = codec.tokenizer.eos_token_id
    grammars = Grammars(pieces, control, [end])
    state = grammars.start(grammar)
    for token in codec.encode_rendered(text):
        if not grammars.allowed([state])[0, token]:
            return False
        state.consume([token])
    return bool(grammars.allowed([state])[0, end])


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
    begun = form.marker or form.first
    assert not accepts(chat, codec, begun + "no call")

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


def test_unconstrained_calls_are_read_all_the_same() -> None:
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


def test_a_whole_turn_with_a_tool() -> None:
    with engine_of("mistral") as engine:
        chat = Chat([USER], tools=TOOLS, tool_choice="weather")
        called = answer(engine, chat).message
        assert called is not None
        [call] = called.tool_calls
        result = Message(role="tool", content="7", tool_call_id=call.id)
        said = answer(engine, Chat([USER, called, result], tools=TOOLS, tool_choice="none"))
    assert said.message is not None


# --- what is refused ---


class Query(BaseModel):
    """Looks something up."""

    words: list[str]


def test_tools_of_other_forms() -> None:
    schema = {"type": "object", "properties": {}}
    wrapped = {"type": "function", "function": {"name": "f", "parameters": schema, "strict": True}}
    chat = Chat([USER], tools=[wrapped, Query])
    assert [tool.name for tool in chat.tools] == ["f", "Query"]
    assert chat.tools[1].description == "Looks something up."
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    message = Message.model_validate({"role": "assistant", "content": None, "tool_calls": [call]})
    assert message.tool_calls == (ToolCall(name="f", arguments={"a": 1}, id="1"),)
    assert Message.model_validate_json(message.model_dump_json()) == message


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"tool_choice": "nobody", "tools": [CLOCK]}, "'nobody' is none of .*'clock'"),
        ({"tool_choice": "required"}, "needs tools"),
        ({"tools": [CLOCK, CLOCK]}, "two tools are called 'clock'"),
        ({"tools": [{"name": "auto"}]}, "no tool can be called 'auto'"),
        ({"tools": [{"name": "a b"}]}, "tools.0.name.*allowed: 1 to 64 letters"),
        ({"tools": [{"name": "f", "parameters": {"type": "array"}}]}, "arguments are an object"),
        ({"tools": [{"name": "f", "parameters": {"default": {1, 2}}}]}, "must be JSON"),
        ({"tools": [CLOCK], "tool_choice": "any", "constrain_tools": False}, "constrain_tools"),
        ({"continue_final_message": True}, "the last message is none"),
    ],
)
def test_chats_that_are_none(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Chat([USER], **values)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"role": "user", "content": [{"type": "image_url"}]}, "image_url.*text alone"),
        ({"role": "user", "content": "a", "tool_call_id": "1"}, "for the role 'tool'"),
        ({"role": "user", "content": "a", "tool_calls": [CALL]}, "for the role 'assistant'"),
        ({"role": "user"}, "content"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}, "no JSON"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"a": {1}}}]}, "be JSON"),
    ],
)
def test_messages_that_are_none(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Message(**values)


def test_frozen_objects_can_be_hashed() -> None:
    chat = Chat([USER, CALLED], tools=TOOLS)
    assert len({chat, Chat([USER, CALLED], tools=TOOLS), Chat([USER])}) == 2
    assert len({SamplingParams(grammar=Query), SamplingParams(grammar=Query)}) == 1


def test_openai_forms_of_a_choice() -> None:
    named = {"type": "function", "function": {"name": "clock"}}
    assert Chat([USER], tools=TOOLS, tool_choice=named).tool_choice == "clock"
    assert Chat([USER], tools=TOOLS, tool_choice=None).tool_choice == "auto"


def test_ids_are_found_and_fit_the_template() -> None:
    calls = (CALL.replace(id="call_abc123456"), ToolCall(name="clock"))
    results = [RESULT.replace(tool_call_id=None, name=None), Message(role="tool", content="9")]
    chat = Chat([USER, CALLED.replace(tool_calls=calls), *results, USER], tools=TOOLS)
    codec = Codec(tokenizer_of("mistral"))
    text = codec.tokenizer.decode(read_conversation(chat, codec).token_ids)
    written = re.findall(r'"(?:call_)?id": "(\w{9})"', text)
    assert len(written) == 4
    assert written[:2] == written[2:]
    assert len(set(written)) == 2


def test_a_reward_prompt_has_no_tools() -> None:
    with engine_of("hermes") as engine, pytest.raises(PromptError, match="tool_choice, tools"):
        engine.generate("a", reward_prompt=Chat([USER], tools=TOOLS, tool_choice="auto"))


def test_a_thought_that_was_begun_goes_on() -> None:
    forced = RegexGrammar(pattern="see[.]</think>Hi[.]")
    with engine_of("thinking") as engine:
        begun = Message(role="assistant", content="<think>\nLet me")
        chat = Chat([USER, begun], continue_final_message=True)
        result = answer(engine, chat, grammar=forced)
    assert result.message == Message(role="assistant", content="Hi.", reasoning="see.")


def test_thoughts_are_read_where_the_template_has_them() -> None:
    forced = RegexGrammar(pattern="<think> is an HTML-like tag[.]")
    with engine_of("phi") as engine:
        result = answer(engine, Chat([USER]), grammar=forced)
    assert result.message == Message(role="assistant", content="<think> is an HTML-like tag.")


def test_thoughts_between_control_tokens() -> None:
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


def test_a_fallback_is_content_wherever_the_answer_stood() -> None:
    begun = Message(role="assistant", content="<think>I")
    fallback = {"on_exhausted": "fallback", "fallback_text": "SORRY"}
    with engine_of("thinking", schedule=ConstantSchedule(value=1e9), **fallback) as engine:
        chat = Chat([USER, begun], continue_final_message=True)
        forced = RegexGrammar(pattern="[a-z]{12}</think>[A-Z]{12}")
        result = answer(engine, chat, grammar=forced)
    assert result.message is not None
    assert result.finish_reason == "fallback"
    assert result.message.content.endswith("SORRY")
    assert "SORRY" not in (result.message.reasoning or "")


@pytest.mark.parametrize("begun", ["<think>I wonder", "<think>I wonder</think>The film"])
def test_the_reward_does_not_read_a_thought_that_was_begun(begun: str) -> None:
    read: list[str] = []
    tokenizer = tokenizer_of("thinking")
    engine = StarsEngine(
        StarsConfig(
            model=TransformersModel(model=random_llama(tokenizer), tokenizer=tokenizer),
            reward=lambda _, completion: float(read.append(completion) or 0),  # type: ignore[func-returns-value]
            align=AlignParams(schedule=ConstantSchedule(value=0.0), segment_len=4),
        )
    )
    pattern = "hm[.]{9}</think>[A-Z]{12}" if begun.endswith("wonder") else "[A-Z]{12}"
    sampling = SamplingParams(grammar=RegexGrammar(pattern=pattern), max_tokens=60, seed=0)
    chat = Chat([USER, Message(role="assistant", content=begun)], continue_final_message=True)
    [result] = engine.generate(chat, sampling=sampling)
    assert read
    assert all("wonder" not in completion for completion in read)
    assert result.message is not None
    prose = begun.rpartition("</think>")[2].replace("<think>I wonder", "")
    assert prose + result.message.content in read


def test_what_goes_on_with_text_needs_a_marker_for_calls() -> None:
    begun = Message(role="assistant", content="The JSON is ")
    for name in ("llama", "gemma"):
        chat = Chat([USER, begun], tools=TOOLS, continue_final_message=True)
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


def test_none_is_nothing() -> None:
    dumped = {"role": "assistant", "content": "x", "tool_calls": None, "refusal": None}
    assert Message(**dumped) == Message(role="assistant", content="x")


def test_tools_and_a_grammar_both() -> None:
    with engine_of("hermes") as engine, pytest.raises(ConfigError, match="tool_choice='none'"):
        answer(engine, Chat([USER], tools=TOOLS), grammar=RegexGrammar(pattern="a"))


def test_a_schema_that_no_grammar_can_keep_names_the_cure() -> None:
    odd = Tool(name="odd", parameters={"properties": {"a": {"type": "array", "uniqueItems": True}}})
    with engine_of("hermes") as engine:
        with pytest.raises(ConfigError, match=r"uniqueItems.*constrain_tools=False"):
            answer(engine, Chat([USER], tools=[odd]))
        assert answer(engine, Chat([USER], tools=[odd], constrain_tools=False), max_tokens=4)


def test_templates_that_refuse_messages_say_so() -> None:
    with engine_of("llama") as engine, pytest.raises(PromptError, match="single tool-calls"):
        answer(engine, Chat([USER, CALLED.replace(tool_calls=(CALL, CALL)), RESULT], tools=TOOLS))


def test_messages_are_in_the_json_of_results() -> None:
    with engine_of("gemma") as engine:
        result = answer(engine, Chat([USER], tools=TOOLS, tool_choice="clock"))
    again = StarsResult.model_validate_json(result.model_dump_json())
    assert again == result
    assert json.loads(result.model_dump_json())["message"]["tool_calls"][0]["name"] == "clock"
