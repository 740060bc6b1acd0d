"""Conversations with an answer in them, finished or not, as a reward model's chat template has it.

How a template begins and ends an assistant's turn is found by rendering one: it differs from model
to model, and nothing else says it.
"""

from __future__ import annotations

from collections.abc import Sequence

from stars_engine.chat.template import Rendered, encode_rendered, free_mark, render
from stars_engine.chat.turns import texts_of, tools_of, turns_of
from stars_engine.errors import PromptError
from stars_engine.messages import Message, Tool
from stars_engine.tokenization.codec import Codec


def encode_answer(
    codec: Codec,
    messages: Sequence[Message],
    completion: str,
    *,
    end_of_turn: bool,
    tools: Sequence[Tool] = (),
) -> list[int]:
    """Encode a conversation and the assistant's answer to it.

    Args:
        codec: The tokenizer with the template.
        messages: The conversation, as `acceptable` returns it.
        completion: The answer; control tokens in it are text.
        end_of_turn: Whether what the template writes after an answer follows.
        tools: What the template is to tell of tools.

    Raises:
        PromptError: The template rejects the messages, or hides where an answer ends.
    """
    head, tail = frame(codec, messages, tools)
    if not completion:
        # Templates may leave out a turn without a content.
        text = head.text + tail if end_of_turn else head.text
        return encode_rendered(codec, Rendered(text, head.mark))
    text, mark = render(codec, [*messages, _answer(completion)], tools, add_generation_prompt=False)
    if not text.endswith(tail):
        raise _hidden(completion)
    if not end_of_turn:
        text = text[: len(text) - len(tail)]
    return encode_rendered(codec, Rendered(text, mark))


def frame(
    codec: Codec, messages: Sequence[Message], tools: Sequence[Tool] = ()
) -> tuple[Rendered, str]:
    """Return what the template writes before an answer, and after it.

    Raises:
        PromptError: The template rejects the messages, or hides where an answer is.
    """
    # A word that no content holds, between marks that no template trims.
    mark = free_mark(texts_of([turns_of(messages), tools_of(tools)]))
    probe = f"{mark}answer{mark}"
    turns = [*messages, _answer(probe)]
    text = render(codec, turns, tools, add_generation_prompt=False, mark=mark).text
    before, found, after = text.rpartition(probe)
    if not found:
        raise _hidden(probe)
    return Rendered(before, mark), after


def acceptable(codec: Codec, messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return the conversation so that the template takes it: merged, where it does not as it is.

    System and tool messages, and users in a row, go into the neighbouring user turn.

    Raises:
        PromptError: It rejects the merged conversation too.
    """
    given = tuple(messages)
    if _keeps_all(codec, given):
        return given
    merged = _merge(given)
    if merged != given and _keeps_all(codec, merged):
        return merged
    frame(codec, given)  # tells what is wrong
    return given  # the template leaves something out on purpose


def _keeps_all(codec: Codec, messages: Sequence[Message]) -> bool:
    """Whether the template takes the messages, and writes what system, user and tools said."""
    try:
        head, _ = frame(codec, messages)
    except PromptError:
        return False
    text = head.text.replace(head.mark, "")
    return all(m.content.strip() in text for m in messages if m.role != "assistant")


def _merge(messages: Sequence[Message]) -> tuple[Message, ...]:
    merged: list[Message] = []
    for message in messages:
        role = "assistant" if message.role == "assistant" and merged else "user"
        if merged and merged[-1].role == role:
            content = f"{merged[-1].content}\n\n{message.content}"
            merged[-1] = Message(role=role, content=content)
        else:
            merged.append(Message(role=role, content=message.content))
    return tuple(merged)


def _answer(content: str) -> Message:
    return Message(role="assistant", content=content)


def _hidden(content: str) -> PromptError:
    return PromptError(
        f"the reward model's chat template does not show where the answer {content[:40]!r} ends. "
        "Cure: template='...{prompt}...{completion}...' in place of it"
    )
