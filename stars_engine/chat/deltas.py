"""An assistant's message as it comes: what each step adds to its content and reasoning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from stars_engine.chat.replies import ReplyReader
from stars_engine.messages import Message


class Said(NamedTuple):
    """Content and reasoning of an answer, each whole or what was added to it."""

    content: str = ""
    reasoning: str = ""


class Deltas:
    """Tells what is new, and takes nothing back: calls of tools are never told as content.

    What may be the beginning of a call or the end of a thought waits, as do blanks that a message
    may end before.

    Args:
        reader: Reads the answers to the conversation.
        prompt_ids: The conversation.
    """

    def __init__(self, reader: ReplyReader, prompt_ids: Sequence[int]) -> None:
        self._reader, self._prompt_ids = reader, prompt_ids
        self._told = Said()

    def add(self, ids: Sequence[int], text: str) -> Said:
        """Return what is new in an answer that goes on."""
        content, reasoning = self._reader.said(self._prompt_ids, ids, text)
        return self._tell(Said(content.rstrip(), reasoning.rstrip()))

    def end(self, message: Message) -> Said:
        """Return what is new in the whole answer."""
        return self._tell(Said(message.content, message.reasoning or ""))

    def _tell(self, now: Said) -> Said:
        new = Said(*(part[len(told) :] for part, told in zip(now, self._told, strict=True)))
        self._told = Said(*(told + part for told, part in zip(self._told, new, strict=True)))
        return new
