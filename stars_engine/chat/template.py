"""Conversations through a tokenizer's own chat template, with contents that stay contents.

A template turns messages into text whose control tokens mark the roles. A control token typed by a
user, or found in a document, must not: it is *defused*, a mark is put inside it before rendering,
and taken out again once the template's own control tokens have been parsed.
"""

from __future__ import annotations

from collections.abc import Sequence

from stars_engine.codec import Codec
from stars_engine.errors import PromptError
from stars_engine.types import Message

# Noncharacters of Unicode: never part of text that is meant to be exchanged.
_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]


def has_template(codec: Codec) -> bool:
    """Return whether the tokenizer brings a chat template."""
    return bool(getattr(codec.tokenizer, "chat_template", None))


def encode_chat(codec: Codec, messages: Sequence[Message]) -> list[int]:
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
    contents = [message.content for message in messages]
    free = (mark for mark in _MARKS if not any(mark in content for content in contents))
    mark = next(free, None)
    if mark is None:
        raise PromptError(
            "the contents hold all 32 noncharacters U+FDD0 to U+FDEF, and one is needed to mark "
            "control tokens. Cure: take them out, they are no characters"
        )
    defused = [_defuse(content, codec.control_tokens, mark) for content in contents]
    rendered = _render(codec, messages, defused)
    if defused == contents:
        return codec.encode_rendered(rendered)
    ids: list[int] = []
    for piece, is_control in codec.split_control_tokens(rendered):
        ids += codec.encode_rendered(piece) if is_control else codec.encode(piece.replace(mark, ""))
    return ids


def _render(codec: Codec, messages: Sequence[Message], contents: Sequence[str]) -> str:
    turns = [
        {"role": message.role, "content": content}
        for message, content in zip(messages, contents, strict=True)
    ]
    try:
        rendered: str = codec.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # templates raise whatever they like
        if (line := getattr(error, "lineno", None)) is not None:  # of Jinja's syntax errors alone
            raise PromptError(
                f"the model's chat_template has a syntax error in line {line}: {error}. Cure: mend "
                "TransformersModel(chat_template=...), or give one if it is the tokenizer's own"
            ) from error
        roles = ", ".join(message.role for message in messages)
        raise PromptError(
            f"the model's chat template rejects these messages ({error}). Cure: change the roles "
            f"or their order; they are: {roles}"
        ) from error
    return rendered


def _defuse(content: str, control_tokens: Sequence[str], mark: str) -> str:
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
