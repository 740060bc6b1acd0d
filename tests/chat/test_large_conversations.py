"""Conversations of many messages: few operations for each, and pauses for other threads."""

from __future__ import annotations

from threading import Thread
from typing import Any

import pytest

from stars_engine import Message, PromptError, ToolCall
from stars_engine.chat import answers
from stars_engine.chat.answers import acceptable
from stars_engine.chat.rendering import render_traced
from stars_engine.chat.template import render
from stars_engine.chat.turns import linked, turns_of
from stars_engine.threads.give_way import set_pause
from stars_engine.tokenization.codec import Codec
from tests.support.chat_templates import tokenizer_of

NUM = 300


def codec_of(template: str | None = None) -> Codec:
    tokenizer = tokenizer_of("hermes")
    if template is not None:
        tokenizer.chat_template = template
    return Codec(tokenizer)


def test_messages_of_one_role_are_joined_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Message] = []

    def counted(**values: Any) -> Message:
        made.append(Message(**values))
        return made[-1]

    monkeypatch.setattr(answers, "Message", counted)
    strict = (
        "{% for m in messages %}{% if not loop.first and m.role == loop.previtem.role %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }}{% endfor %}"
    )
    messages = [Message(role="user", content=f"part {index}") for index in range(NUM)]
    [joined] = acceptable(codec_of(strict), messages, has_answer=False)
    assert joined.content == "\n\n".join(f"part {index}" for index in range(NUM))
    assert sum(len(message.content) for message in made) < 10 * len(joined.content)


def test_the_results_of_many_calls_are_linked_by_few_comparisons() -> None:
    compared: list[str] = []

    class Counted(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            compared.append(self)
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    calls = tuple(
        ToolCall.model_construct(name=f"f{index}", arguments={}, id=Counted(f"id{index}"))
        for index in range(NUM)
    )
    asked = Message(role="assistant", content="").model_copy(update={"tool_calls": calls})
    results = [
        Message(role="tool", content="7", tool_call_id=f"id{index}")
        for index in reversed(range(NUM))
    ]
    unnamed = Message(role="tool", content="8")
    found = linked([asked, *results[:-2], unnamed, unnamed, unnamed])
    names = [f"f{index}" for index in reversed(range(NUM))]
    assert [message.name for message in found[1:]] == [*names[:-2], "f0", "f1", None]
    assert len(compared) < 20 * NUM


def test_other_threads_run_while_a_template_reads_many_messages() -> None:
    pauses: list[int] = []
    turns = turns_of([Message(role="user", content="a")] * NUM)

    def work() -> None:
        set_pause(lambda: pauses.append(1))
        render_traced(tokenizer_of("hermes"), turns, None, add_generation_prompt=True, variables={})

    thread = Thread(target=work)
    thread.start()
    thread.join()
    assert len(pauses) >= 2 * NUM  # before rendering, and by the template


def test_an_error_names_the_first_of_many_roles() -> None:
    messages = [Message(role="user", content="a")] * NUM
    with pytest.raises(PromptError, match="and 268 more") as caught:
        render(codec_of("{{ raise_exception('no') }}"), messages, add_generation_prompt=True)
    assert len(str(caught.value)) < 500
