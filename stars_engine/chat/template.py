"""Conversations through a tokenizer's own chat template, with contents that stay contents.

A template turns messages into text whose control tokens mark the roles. A control token typed by a
user, or found in a document, must not: it is *defused*, a mark is put inside it before rendering,
and taken out again once the template's own control tokens have been parsed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from stars_engine.chat.turns import mapped, texts_of, tools_of, turns_of
from stars_engine.errors import PromptError
from stars_engine.messages import Message, Tool
from stars_engine.tokenization.codec import Codec

# Values that templates compare with, and no control tokens.
_WORDS = frozenset({"system", "user", "assistant", "tool", "function"})

# Noncharacters of Unicode: never part of text that is meant to be exchanged.
_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]


class Rendered(NamedTuple):
    """Text from a template.

    Attributes:
        text: With the mark inside control tokens that are contents'.
        mark: A character that no content holds.
    """

    text: str
    mark: str


def has_template(codec: Codec) -> bool:
    """Return whether the tokenizer brings a chat template."""
    return bool(getattr(codec.tokenizer, "chat_template", None))


def encode_chat(codec: Codec, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
    """Render messages, ready for the assistant to answer, and encode them.

    Equal to `apply_chat_template` unless a content holds a control token.

    Raises:
        PromptError: There is no template, it rejects the messages, or they hold every noncharacter.
    """
    if not has_template(codec):
        raise PromptError(
            "a conversation needs a chat template and this model's tokenizer has none. Cure: pass "
            "a string, set prompt_format='raw', or give TransformersModel(chat_template=...)"
        )
    return encode_rendered(codec, render(codec, messages, tools, add_generation_prompt=True))


def render(
    codec: Codec,
    messages: Sequence[Message],
    tools: Sequence[Tool] = (),
    *,
    add_generation_prompt: bool,
    mark: str | None = None,
) -> Rendered:
    """Render messages, with control tokens in their contents defused.

    Args:
        codec: The tokenizer with the template.
        messages: The conversation.
        tools: What the template is to tell of tools.
        add_generation_prompt: Whether an assistant's turn begins at the end.
        mark: What to put inside control tokens; the default is one that no content holds.

    Raises:
        PromptError: The template rejects the messages, or they hold every noncharacter.
    """
    turns, listed = turns_of(messages), tools_of(tools)
    mark = mark or free_mark(texts_of([turns, listed]))
    harmless = partial(_harmless, control_tokens=codec.control_tokens, mark=mark)
    try:
        text: str = codec.tokenizer.apply_chat_template(
            mapped(turns, harmless),
            tools=mapped(listed, harmless),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    except Exception as error:  # templates raise whatever they like
        if (line := getattr(error, "lineno", None)) is not None:  # of Jinja's syntax errors alone
            raise PromptError(
                f"the model's chat_template has a syntax error in line {line}: {error}. Cure: mend "
                "TransformersModel(chat_template=...), or give one if it is the tokenizer's own"
            ) from error
        roles = ", ".join(message.role for message in messages)
        calls = ", or the calls of tools and their ids" if "tool" in f"{turns}" else ""
        raise PromptError(
            f"the model's chat template rejects these messages ({error}). Cure: change the roles "
            f"or their order{calls}; they are: {roles}"
        ) from error
    return Rendered(text, mark)


def encode_rendered(codec: Codec, rendered: Rendered) -> list[int]:
    """Encode what was rendered: the template's control tokens are parsed, contents' are text."""
    if rendered.mark not in rendered.text:
        return codec.encode_rendered(rendered.text)
    ids: list[int] = []
    for piece, is_control in codec.split_control_tokens(rendered.text):
        text = piece.replace(rendered.mark, "")
        ids += codec.encode_rendered(text) if is_control else codec.encode(text)
    return ids


def free_mark(contents: Sequence[str]) -> str:
    """Return a noncharacter that no content holds.

    Raises:
        PromptError: They hold them all.
    """
    free = (mark for mark in _MARKS if not any(mark in content for content in contents))
    mark = next(free, None)
    if mark is None:
        raise PromptError(
            "the contents hold all 32 noncharacters U+FDD0 to U+FDEF, and one is needed to mark "
            "control tokens. Cure: take them out, they are no characters"
        )
    return mark


def knows_tools(codec: Codec) -> bool:
    """Return whether the chat template tells the model of tools."""
    probe = Tool(name="a_tool_that_nobody_has")
    turn = Message(role="user", content="Hello")
    try:
        text = render(codec, [turn], [probe], add_generation_prompt=True).text
    except PromptError:
        return False
    return probe.name in text


def _harmless(text: str, control_tokens: Sequence[str], mark: str) -> str:
    return text if text in _WORDS else defuse(text, control_tokens, mark)


def defuse(content: str, control_tokens: Sequence[str], mark: str) -> str:
    """Put the mark inside every control token, and where one could be completed by a neighbour."""
    for token in control_tokens:
        content = content.replace(token, token[0] + mark + token[1:])
    for token in control_tokens:
        for size in range(len(token) - 1, 0, -1):
            if content.endswith(token[:size]):
                content += mark
            if content.startswith(token[size:]):
                content = mark + content
    return content
