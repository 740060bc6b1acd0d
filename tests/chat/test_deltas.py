"""Streamed message deltas: they add up to the message, and calls are never sent as content."""

from __future__ import annotations

import random

import pytest

from stars_engine import Chat, NoSchedule, TokenIds
from stars_engine.chat.conversations import read_conversation
from stars_engine.chat.deltas import Deltas, Said
from stars_engine.chat.formats import CLOSING, GENERIC, OPENING, format_of
from stars_engine.tokenization.codec import Codec
from tests.support.chat import SYSTEM, TOOLS, USER, engine_of
from tests.support.chat_templates import FAMILIES, tokenizer_of

WEATHER_CALL = ("weather", {"city": "Oslo", "days": 3})
PIECES = [
    "It is",
    " ",
    "\n\n",
    "warm.",
    "{",
    '{"a": 1}',
    "<",
    "<tool",
    "[",
    "né 🥶",
    "</",
    "reason",
]


def answers(name: str | None, rng: random.Random) -> str:
    """Return an answer of some kind: reasoning, text, calls, pieces of either."""
    template = tokenizer_of(name).chat_template or ""
    form = format_of(template)
    if rng.random() < 0.3:
        form = GENERIC
    reasoning = f"{OPENING}\n{''.join(rng.choices(PIECES, k=3))}{CLOSING}\n\n"
    parts = [
        rng.choice(["", "", reasoning, "\n", OPENING]),
        "".join(rng.choices(PIECES, k=rng.randrange(6))),
        rng.choice(["", form.write([WEATHER_CALL] * rng.randint(1, 2)), form.begin, form.marker]),
        rng.choice(["", "", " and more", "\n"]),
    ]
    return "".join(parts)


@pytest.mark.parametrize("name", [*FAMILIES, None])
@pytest.mark.parametrize("tool_choice", ["auto", "required", "none"])
def test_deltas_of_any_size_add_up_to_the_message(name: str | None, tool_choice: str) -> None:
    codec = Codec(tokenizer_of(name))
    chat = Chat([USER], tools=TOOLS, tool_choice=tool_choice)
    resolved = read_conversation(chat, codec)
    assert resolved.replies is not None
    rng = random.Random(0)
    for _ in range(60):
        answer = answers(name, rng)
        # Markers as control tokens where there are such, or spelled.
        ids = codec.tokenizer.encode(
            answer, add_special_tokens=False, split_special_tokens=rng.random() < 0.5
        )
        text, _ = codec.completion_text(resolved.token_ids, ids)
        message = resolved.replies.read(resolved.token_ids, ids, text)
        deltas, sent = Deltas(resolved.replies, resolved.token_ids), Said()
        size = 0
        while size < len(ids):
            size += rng.randint(1, 12)
            so_far, _ = codec.completion_text(resolved.token_ids, ids[:size])
            new = deltas.add(ids[:size], so_far)
            sent = Said(sent.content + new.content, sent.reasoning + new.reasoning)
            assert message.content.startswith(sent.content)
            assert (message.reasoning or "").startswith(sent.reasoning)
        new = deltas.end(message)
        assert sent.content + new.content == message.content
        assert sent.reasoning + new.reasoning == (message.reasoning or "")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hermes", "thinking", "gemma", None])
def test_streams_of_the_engine_add_up_to_messages(name: str | None) -> None:
    with engine_of(name, schedule=NoSchedule(), segment_len=4) as engine:
        for chat in (
            Chat([SYSTEM, USER] if name != "gemma" else [USER]),
            Chat([USER], tools=TOOLS),
        ):
            events = list(engine.stream(chat, sampling=engine.sampling.replace(max_tokens=48)))
            result = events[-1].result
            assert result is not None
            assert result.message is not None
            assert "".join(event.content or "" for event in events) == result.message.content
            reasoning = "".join(event.reasoning or "" for event in events)
            assert reasoning == (result.message.reasoning or "")
            assert sum(bool(event.content) for event in events) > 1 or not result.message.content
        [event, *_] = engine.stream(TokenIds([1, 2]), sampling=engine.sampling)
        assert event.content is None
        assert event.reasoning is None
