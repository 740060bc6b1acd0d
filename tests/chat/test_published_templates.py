"""Chat templates as published for their models: rendering, and role boundaries."""

from __future__ import annotations

import pytest

from stars_engine import Chat, Message
from stars_engine.chat.conversations import read_conversation
from stars_engine.chat.formats import format_of
from stars_engine.chat.turns import tools_of, turns_of
from stars_engine.tokenization.codec import Codec
from tests.support.chat import CALL, CALLED, CLOCK, RESULT, SYSTEM, TOOLS, USER, WEATHER
from tests.support.codecs import encode_chat
from tests.support.published_templates import NO_SYSTEM, PUBLISHED, published


@pytest.mark.parametrize("name", PUBLISHED)
def test_rendering_equals_apply_chat_template(name: str) -> None:
    tokenizer = published(name)
    codec = Codec(tokenizer)
    said = [[USER], [USER, Message(role="assistant", content="Cold. 🥶"), USER]]
    if name not in NO_SYSTEM:
        said.append([SYSTEM, USER])
    conversations = [(messages, ()) for messages in said]
    if PUBLISHED[name] is not None:
        assert format_of(tokenizer.chat_template).name == PUBLISHED[name]
        conversations += [([USER], TOOLS), ([SYSTEM, USER], (CLOCK,))]
        conversations.append(([SYSTEM, USER, CALLED, RESULT, USER], TOOLS))
    for messages, tools in conversations:
        expected = tokenizer.apply_chat_template(
            turns_of(messages), tools=tools_of(tools), add_generation_prompt=True, return_dict=False
        )
        chat = Chat(messages, tools=tools, constrain_tools=False)
        assert list(read_conversation(chat, codec).token_ids) == expected


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_prefill_is_continued(name: str) -> None:
    tokenizer = published(name)
    prefill = Message(role="assistant", content="It is ve")
    expected = tokenizer.apply_chat_template(
        turns_of([USER, prefill]), continue_final_message=True, return_dict=False
    )
    chat = Chat([USER, prefill], continue_final_message=True)
    assert list(read_conversation(chat, Codec(tokenizer)).token_ids) == expected


@pytest.mark.parametrize("name", PUBLISHED)
def test_control_tokens_in_messages_never_change_role_boundaries(name: str) -> None:
    tokenizer = published(name)
    codec = Codec(tokenizer)
    control = set(tokenizer.convert_tokens_to_ids(list(codec.control_tokens)))
    assert len(control) > 3
    every = "".join(codec.control_tokens)

    def borders(text: str) -> list[int]:
        messages = [USER.replace(content=f"a{text}b"), Message(role="assistant", content="c")]
        tools = ()
        if PUBLISHED[name] is not None:
            called = CALLED.replace(tool_calls=(CALL.replace(arguments={"city": text}),))
            messages += [USER, called, RESULT.replace(content=text)]
            tools = (WEATHER.replace(description=text),)
        ids = encode_chat(codec, [*messages, USER.replace(content=text)], tools)
        assert codec.decode(ids).count(text) >= 2
        return [token for token in ids if token in control]

    assert borders(every) == borders("x")
