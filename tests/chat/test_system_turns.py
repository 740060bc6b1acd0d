"""System messages anywhere in a conversation: one rule for all chat templates."""

from __future__ import annotations

from typing import Any

import pytest

from stars_engine import Chat, Message
from stars_engine.chat.answers import acceptable
from stars_engine.chat.conversations import read_conversation
from stars_engine.chat.turns import turns_of
from stars_engine.tokenization.codec import Codec
from tests.support.chat_templates import FAMILIES, Family, tokenizer_of, tokenizer_of_family
from tests.support.published_templates import PUBLISHED, published

ROLES = {"s": "system", "u": "user", "a": "assistant"}
# A letter per message; system messages in the middle and at the end.
SHAPES = ["uasu", "suasu", "us", "ssu", "usau", "sus", "susau", "suas", "sau", "ussu", "susasu"]
CODECS = {
    **{f"{name} as published": (published, name) for name in PUBLISHED},
    **{name: (tokenizer_of, name) for name in FAMILIES},
}
FIRST_ONLY = """
{%- for m in messages %}
    {%- if m.role == 'system' and not loop.first %}
        {{- raise_exception('System message must be at the beginning.') }}
    {%- endif %}
    {{- '<|' + m.role + '|>' + m.content + '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}<|assistant|>{% endif %}
"""


def turns(shape: str) -> list[Message]:
    return [Message(role=ROLES[role], content=f"{role}{i}.") for i, role in enumerate(shape)]  # type: ignore[arg-type]


def first_only() -> Codec:
    control = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
    return Codec(tokenizer_of_family(Family(FIRST_ONLY, control, "<|end|>")))


@pytest.mark.parametrize("name", CODECS)
def test_system_messages_may_be_anywhere(name: str) -> None:
    """Each message is rendered once, in its order, and none with a role that is not the model's."""
    make, of = CODECS[name]
    codec = Codec(make(of))
    has_role = "system" in text_of(codec, turns("su")).lower()
    for shape in SHAPES:
        for has_answer in (False, True):
            given = turns(shape)
            taken = acceptable(codec, given, has_answer=has_answer)
            text = text_of(codec, given)
            assert all(text.count(message.content) == 1 for message in given), shape
            contents = "".join(message.content for message in taken)
            assert contents.replace("\n", "") == "".join(message.content for message in given)
            if not has_role:
                assert "system" not in text.lower(), (shape, text)


def text_of(codec: Codec, given: list[Message]) -> str:
    """What the model reads, with its control tokens."""
    ids = list(read_conversation(Chat(given), codec).token_ids)
    text: str = codec.tokenizer.decode(ids)
    return text


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("uasu", "user: u0. | assistant: a1. | user: s2.\n\nu3."),
        ("us", "user: u0.\n\ns1."),
        ("suasu", "system: s0. | user: u1. | assistant: a2. | user: s3.\n\nu4."),
        ("sus", "system: s0. | user: u1.\n\ns2."),
        ("suas", "system: s0. | user: u1. | assistant: a2. | user: s3."),
        ("ssus", "system: s0.\n\ns1. | user: u2.\n\ns3."),
    ],
)
@pytest.mark.parametrize("make", [lambda: Codec(published("gemma3")), first_only])
def test_only_late_system_messages_are_given_to_the_user(
    make: Any, shape: str, expected: str
) -> None:
    """Gemma 3 writes the role of a late system message, though it has none; others refuse it."""
    codec = make()
    for has_answer in (False, True):
        taken = acceptable(codec, turns(shape), has_answer=has_answer)
        assert " | ".join(f"{turn.role}: {turn.content}" for turn in taken) == expected
    ids = codec.tokenizer.apply_chat_template(
        turns_of(taken), add_generation_prompt=True, return_dict=False
    )
    assert list(read_conversation(Chat(turns(shape)), codec).token_ids) == ids


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "llama3", "llama3_1", "phi3", "lfm2"])
@pytest.mark.parametrize("shape", SHAPES)
def test_templates_with_a_system_role_get_system_messages_as_they_are(
    name: str, shape: str
) -> None:
    codec = Codec(published(name))
    assert acceptable(codec, turns(shape), has_answer=False) == tuple(turns(shape))
