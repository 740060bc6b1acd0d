"""Stream an assistant message: what each step adds to its content and reasoning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from stars_engine.chat.call_deltas import WrittenCall
from stars_engine.chat.tool_calls import call_id
from stars_engine.messages import Message
from stars_engine.types import ToolCallDelta


class Said(NamedTuple):
    """Content and reasoning of an answer, or what a step adds to them."""

    content: str = ""
    reasoning: str = ""


class Replies(Protocol):
    """Reads the answers to one conversation; see `ReplyReader`."""

    def read(
        self, prompt_ids: Sequence[int], ids: Sequence[int], text: str, *, salt: str = ""
    ) -> Message:
        """Return an answer, finished or not, as a message."""

    def said(self, prompt_ids: Sequence[int], ids: Sequence[int], text: str) -> tuple[str, str]:
        """Return the content and the reasoning of an unfinished answer that cannot change."""

    def calls(self, prompt_ids: Sequence[int], ids: Sequence[int], text: str) -> list[WrittenCall]:
        """Return the calls of an unfinished answer, as far as they are written."""


class UnreadReplies:
    """Answers to a conversation that end before it is read, with a fallback text at most."""

    def read(
        self, prompt_ids: Sequence[int], ids: Sequence[int], text: str, *, salt: str = ""
    ) -> Message:
        """See `Replies`."""
        return Message(role="assistant", content=text)

    def said(self, prompt_ids: Sequence[int], ids: Sequence[int], text: str) -> tuple[str, str]:
        """See `Replies`."""
        return text, ""

    def calls(self, prompt_ids: Sequence[int], ids: Sequence[int], text: str) -> list[WrittenCall]:
        """See `Replies`."""
        return []


class Deltas:
    """Returns what is new in an answer and never retracts it; tool calls are never content.

    Text that may be the beginning of a call or the end of the reasoning is withheld until it is
    decided, and so are trailing blanks.

    Args:
        reader: Reads the answers to the conversation.
        prompt_ids: The conversation.
        salt: Distinguishes the ids of the answer's calls from those of other answers.
    """

    def __init__(self, reader: Replies, prompt_ids: Sequence[int], *, salt: str = "") -> None:
        self._reader, self._prompt_ids, self._salt = reader, prompt_ids, salt
        self._sent = Said()
        self._calls: list[WrittenCall] = []

    def calls(self, ids: Sequence[int], text: str) -> tuple[ToolCallDelta, ...]:
        """Return what is new in the tool calls of an answer, finished or not."""
        now = self._reader.calls(self._prompt_ids, ids, text)
        added = []
        for index, call in enumerate(now):
            before = self._calls[index] if index < len(self._calls) else None
            new = call.arguments[len(before.arguments) if before else 0 :]
            if before is None or new:
                begin: dict[str, str] = {}
                if before is None:
                    begin = {"name": call.name, "id": call_id(index, call.name, self._salt)}
                added.append(ToolCallDelta(index=index, arguments=new, **begin))
        self._calls = now
        return tuple(added)

    def add(self, ids: Sequence[int], text: str) -> Said:
        """Return what is new in an unfinished answer."""
        content, reasoning = self._reader.said(self._prompt_ids, ids, text)
        return self._send(Said(content.rstrip(), reasoning.rstrip()))

    def end(self, message: Message) -> Said:
        """Return what is new in the finished answer."""
        return self._send(Said(message.content, message.reasoning or ""))

    def _send(self, now: Said) -> Said:
        new = Said(*(part[len(sent) :] for part, sent in zip(now, self._sent, strict=True)))
        self._sent = Said(*(sent + part for sent, part in zip(self._sent, new, strict=True)))
        return new
