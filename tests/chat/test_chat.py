"""Conversations with tools: how they are rendered, and which are refused."""

from __future__ import annotations

import json
import logging
import re
from typing import Any

import pytest
from pydantic import BaseModel

from stars_engine import (
    AlignParams,
    Chat,
    ConfigError,
    ConstantSchedule,
    Message,
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
)
from stars_engine.chat.turns import tools_of, turns_of
from stars_engine.tokenization.codec import Codec
from stars_engine.types import StarsResult
from tests.support.chat import (
    CALL,
    CALLED,
    CLOCK,
    RESULT,
    SYSTEM,
    TOOLS,
    USER,
    WEATHER,
    WITH_TOOLS,
    accepts,
    answer,
    engine_of,
)
from tests.support.chat_templates import FAMILIES, random_llama, tokenizer_of
from tests.support.codecs import encode_chat

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
def test_control_tokens_in_messages_do_not_change_role_boundaries(name: str) -> None:
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


def test_tools_as_text_if_the_template_has_no_tools() -> None:
    codec = Codec(tokenizer_of("gemma"))
    chat = Chat([SYSTEM, USER, CALLED, RESULT], tools=TOOLS, constrain_tools=False)
    text = codec.decode(read_conversation(chat, codec).token_ids)
    for part in ("Be kind.", "Tells the weather.", '"tool_calls": [', "Result of weather: {"):
        assert part in text
    assert text.count("model\n") == 2  # the call, and the answer to come


def test_tools_as_text_if_the_template_has_another_format() -> None:
    tokenizer = tokenizer_of("phi")
    tokenizer.chat_template = "{{ tools | tojson }}<|call|>" + FAMILIES["phi"].template
    codec = Codec(tokenizer)
    chat = Chat([USER], tools=TOOLS, tool_choice="clock")
    text = codec.decode(read_conversation(chat, codec).token_ids)
    assert text.startswith("null")
    assert '{"tool_calls": [{"name"' in text
    assert accepts(chat, codec, GENERIC.write([("clock", {})]))


@pytest.mark.parametrize("name", ["hermes", "llama", "mistral", "gemma", None])
def test_a_prefill_is_continued(name: str | None) -> None:
    tokenizer = tokenizer_of(name)
    prefill = Message(role="assistant", content="It is <|im_end|> ve")
    chat = Chat([USER, prefill], continue_final_message=True)
    resolved = read_conversation(chat, Codec(tokenizer))
    assert Codec(tokenizer).decode(resolved.token_ids).endswith("It is <|im_end|> ve")
    assert resolved.prefill == prefill.content
    assert resolved.for_reward.messages == (USER,)
    if name not in (None, "mistral"):  # whose template trims nothing but adds a space
        plain = prefill.replace(content="It is ve")
        expected = tokenizer.apply_chat_template(
            turns_of([USER, plain]), continue_final_message=True, return_dict=False
        )
        chat = Chat([USER, plain], continue_final_message=True)
        assert list(read_conversation(chat, Codec(tokenizer)).token_ids) == expected


def test_the_reward_reads_the_prefill() -> None:
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
    prefill = Message(role="assistant", content="It is")
    [result] = engine.generate(Chat([USER, prefill], continue_final_message=True))
    assert read
    assert all(completion.startswith("It is") for completion in read)
    assert not result.text.startswith("It is")


def test_without_a_template_the_answer_ends_before_the_next_user_turn(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with engine_of(None) as engine, caplog.at_level(logging.WARNING):
        result = answer(engine, Chat([USER]), max_tokens=8)
    assert "plain transcript" in caplog.text
    assert result.message is not None
    assert result.message.content == result.text


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
    ("values", "message"),
    [
        ({"tool_choice": "nobody", "tools": [CLOCK]}, "unknown tool_choice 'nobody'.*'clock'"),
        ({"tool_choice": "required"}, "needs tools"),
        ({"tools": [CLOCK, CLOCK]}, "two tools are called 'clock'"),
        ({"tools": [{"name": "auto"}]}, "no tool can be called 'auto'"),
        ({"tools": [{"name": "a b"}]}, "tools.0.name.*allowed: 1 to 64 letters"),
        ({"tools": [{"name": "f", "parameters": {"type": "array"}}]}, "arguments are an object"),
        ({"tools": [{"name": "f", "parameters": {"default": {1, 2}}}]}, "must be JSON"),
        ({"tools": [CLOCK], "tool_choice": "any", "constrain_tools": False}, "constrain_tools"),
        ({"continue_final_message": True}, "the last message has role 'user'"),
    ],
)
def test_invalid_chats(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Chat([USER], **values)


def test_invalid_prefills() -> None:
    prefill = Message(role="assistant", content="It is")
    with pytest.raises(ConfigError, match=r"before the assistant's\. Hint: add a message"):
        Chat([prefill], continue_final_message=True)
    with pytest.raises(ConfigError, match=r"tool_choice is 'required'\. Hint: use tool_choice="):
        Chat(
            [USER, prefill],
            tools=[CLOCK],
            tool_choice="required",
            continue_final_message=True,
        )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"role": "user", "content": [{"type": "image_url"}]}, "image_url.*only text"),
        ({"role": "user", "content": "a", "tool_call_id": "1"}, "needs the role 'tool'"),
        ({"role": "user", "content": "a", "tool_calls": [CALL]}, "needs the role 'assistant'"),
        ({"role": "user"}, "content"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}, "not valid JSON"),
        ({"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"a": {1}}}]}, "be JSON"),
    ],
)
def test_invalid_messages(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Message(**values)


def test_frozen_objects_can_be_hashed() -> None:
    chat = Chat([USER, CALLED], tools=TOOLS)
    assert len({chat, Chat([USER, CALLED], tools=TOOLS), Chat([USER])}) == 2
    assert len({SamplingParams(grammar=Query), SamplingParams(grammar=Query)}) == 1


def test_openai_forms_of_a_choice() -> None:
    named = {"type": "function", "function": {"name": "clock"}}
    assert Chat([USER], tools=TOOLS, tool_choice=named).tool_choice == "clock"
    assert Chat([USER], tools=TOOLS, tool_choice=None).tool_choice == "auto"


def test_ids_of_tool_calls_suit_the_template() -> None:
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


def test_tools_together_with_a_grammar() -> None:
    with engine_of("hermes") as engine, pytest.raises(ConfigError, match="tool_choice='none'"):
        answer(engine, Chat([USER], tools=TOOLS), grammar=RegexGrammar(pattern="a"))


def test_a_schema_without_a_grammar_is_refused_with_a_hint() -> None:
    odd = Tool(name="odd", parameters={"properties": {"a": {"type": "array", "uniqueItems": True}}})
    with engine_of("hermes") as engine:
        with pytest.raises(ConfigError, match=r"uniqueItems.*constrain_tools=False"):
            answer(engine, Chat([USER], tools=[odd]))
        assert answer(engine, Chat([USER], tools=[odd], constrain_tools=False), max_tokens=4)


def test_errors_of_templates_are_reported() -> None:
    with engine_of("llama") as engine, pytest.raises(PromptError, match="single tool-calls"):
        answer(engine, Chat([USER, CALLED.replace(tool_calls=(CALL, CALL)), RESULT], tools=TOOLS))


def test_messages_are_in_the_json_of_results() -> None:
    with engine_of("gemma") as engine:
        result = answer(engine, Chat([USER], tools=TOOLS, tool_choice="clock"))
    again = StarsResult.model_validate_json(result.model_dump_json())
    assert again == result
    assert json.loads(result.model_dump_json())["message"]["tool_calls"][0]["name"] == "clock"
