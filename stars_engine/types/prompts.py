"""Prompts: token ids, rendered text, conversations or plain text."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from stars_engine.messages import Chat, Message
from stars_engine.schema import Schema


class TokenIds(Schema):
    """A prompt given as token ids of the language model; nothing is added to it."""

    ids: tuple[int, ...] = Field(description="token ids of the language model", examples=[[1, 15]])

    def __init__(self, ids: Any = (), /, **values: Any) -> None:
        super().__init__(**({"ids": ids} | values))

    @field_validator("ids")
    @classmethod
    def _are_ids(cls, ids: tuple[int, ...]) -> tuple[int, ...]:
        if any(not 0 <= token < 2**31 for token in ids):  # larger than any vocabulary
            raise ValueError("token ids are integers from 0 up to the size of the vocabulary")
        return ids


class RenderedPrompt(Schema):
    """Text that a chat template has rendered; control tokens in it are parsed.

    This is the only prompt type whose text may contain control tokens. Never build one from
    untrusted text.
    """

    text: str = Field(description="the rendered text, including control tokens")
    messages: tuple[Message, ...] | None = Field(
        default=None, description="messages that the reward model sees instead of the text"
    )
    add_special_tokens: bool = Field(
        default=False,
        description="put what the tokenizer puts before a text, such as begin of text, before this "
        "one, unless it is there",
    )

    def __init__(self, text: Any = "", /, **values: Any) -> None:
        super().__init__(**({"text": text} | values))


Prompt = str | Chat | TokenIds | RenderedPrompt
