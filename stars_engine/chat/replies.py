"""Split an assistant's answer into reasoning, content and tool calls."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stars_engine.chat.call_deltas import WrittenCall, written_calls
from stars_engine.chat.formats import (
    BLANKS,
    CLOSING,
    OPENING,
    ToolFormat,
    as_seen,
    format_as_seen,
    marked_text,
    unmarked,
)
from stars_engine.chat.tool_calls import Calls, may_be_a_call, read_calls, start_of_calls
from stars_engine.messages import InvalidToolCall, Message, Tool
from stars_engine.tokenization.codec import Codec

# Whether an answer may begin with reasoning ("optional"), or the prompt has opened it ("open").
ReasoningMode = Literal["none", "optional", "open"]


@dataclass(frozen=True, slots=True)
class ReplyReader:
    """Reads the answers to one conversation.

    Attributes:
        codec: The language model's tokenizer.
        form: The format in which the model writes calls.
        tools: The tools that it may call; without tools, nothing is read as a call.
        reasoning_mode: Whether the answer contains reasoning.
        must_call: Whether the answer must consist of calls.
    """

    codec: Codec
    form: ToolFormat
    tools: tuple[Tool, ...] = ()
    reasoning_mode: ReasoningMode = "none"
    must_call: bool = False

    def read(
        self, prompt_ids: Sequence[int], ids: Sequence[int], text: str, *, salt: str = ""
    ) -> Message:
        """Return an answer, finished or not, as a message; no text is lost.

        `salt` distinguishes the ids of its calls from those of other answers.
        """
        marked = self.marked(prompt_ids, ids, text)
        reasoning, rest = None, marked
        if self._thinks(marked):
            opened = marked.lstrip(BLANKS).removeprefix(self._seen(OPENING))
            inner, _, rest = opened.partition(self._seen(CLOSING))
            reasoning, rest = unmarked(inner).strip(), rest.lstrip("\n")
        calls = Calls(unmarked(rest))
        if self.tools:
            calls = read_calls(rest, self._form_as_seen(), self.tools, salt=salt)
            if self.must_call and not (calls.valid or calls.invalid) and rest.strip():
                broken = InvalidToolCall(
                    text=unmarked(rest), error="the answer ends before a call begins"
                )
                calls = Calls("", invalid=(broken,))
        return Message(
            role="assistant",
            content=calls.content,
            reasoning=reasoning,
            tool_calls=calls.valid,
            invalid_tool_calls=calls.invalid,
        )

    def said(self, prompt_ids: Sequence[int], ids: Sequence[int], text: str) -> tuple[str, str]:
        """Return the content and the reasoning of an unfinished answer that cannot change."""
        reasoning, rest = "", self.marked(prompt_ids, ids, text)
        opening, closing = self._seen(OPENING), self._seen(CLOSING)
        stripped = rest.lstrip(BLANKS)
        if self.reasoning_mode == "optional" and opening.startswith(stripped):
            return "", ""
        if self._thinks(rest):
            inner, closed, rest = stripped.removeprefix(opening).partition(closing)
            inner = inner if closed else inner[: _end_without(closing, inner)]
            reasoning, rest = unmarked(inner).lstrip(), rest.lstrip("\n")
        if self.tools:
            form = self._form_as_seen()
            if self.must_call or may_be_a_call(rest, form):
                return "", reasoning
            rest = rest[: start_of_calls(rest, form)]
            rest = rest[: _end_without(form.marker, rest)]
        return unmarked(rest), reasoning

    def calls(self, prompt_ids: Sequence[int], ids: Sequence[int], text: str) -> list[WrittenCall]:
        """Return the calls of an unfinished answer, as far as they are written."""
        if not self.tools:
            return []
        marked = self.marked(prompt_ids, ids, text)
        if self._thinks(marked):
            _, closed, marked = marked.partition(self._seen(CLOSING))
            if not closed:
                return []
        names = {tool.name for tool in self.tools}
        return written_calls(marked.lstrip("\n"), self._form_as_seen(), names)

    def judged(
        self, prompt_ids: Sequence[int], ids: Sequence[int], text: str
    ) -> tuple[str, tuple[int, ...]]:
        """Return the prose of an answer: its text, and the ids of the tokens that begin in it."""
        marked = self.marked(prompt_ids, ids, text)
        begin, end = self.prose(marked)
        if self.tools:
            end = begin + _end_without(self._form_as_seen().marker, marked[begin:end])
        if (begin, end) == (0, len(marked)):
            return text, tuple(ids)

        def start_of(size: int) -> int:
            return len(self.marked(prompt_ids, ids[:size], self._text(prompt_ids, ids[:size])))

        first, last = (bisect_left(range(len(ids)), place, key=start_of) for place in (begin, end))
        return unmarked(marked[begin:end]), tuple(ids[first:last])

    def prose_of_prefill(self, prefill: str) -> str:
        """Return the prose of an assistant prefill: the part after its reasoning."""
        if self.reasoning_mode == "none" or OPENING not in prefill:
            return prefill
        return prefill.rpartition(CLOSING)[2].lstrip() if self.reasoning_mode != "open" else ""

    def marked(self, prompt_ids: Sequence[int], ids: Sequence[int], text: str) -> str:
        """Insert the markers that are control tokens into the text of an answer."""
        return marked_text(self.codec, prompt_ids, ids, text)

    def prose(self, marked: str) -> tuple[int, int]:
        """Return where the prose begins and ends in a marked answer.

        Reasoning precedes the prose, and calls follow it. Text that could still become the
        beginning of either is not prose yet.
        """
        begin, stripped = 0, marked.lstrip(BLANKS)
        if self.reasoning_mode != "none" and stripped and self._seen(OPENING).startswith(stripped):
            return len(marked), len(marked)
        if self._thinks(marked):
            end = marked.find(self._seen(CLOSING))
            begin = len(marked) if end < 0 else end + len(self._seen(CLOSING))
            begin += len(marked[begin:]) - len(marked[begin:].lstrip())
        if not self.tools:
            return begin, len(marked)
        form, rest = self._form_as_seen(), marked[begin:]
        if self.must_call or may_be_a_call(rest, form):
            return begin, begin
        return begin, begin + start_of_calls(rest, form)

    def _thinks(self, marked: str) -> bool:
        if self.reasoning_mode == "none":
            return False
        return self.reasoning_mode == "open" or marked.lstrip(BLANKS).startswith(
            self._seen(OPENING)
        )

    def _text(self, prompt_ids: Sequence[int], ids: Sequence[int]) -> str:
        return self.codec.completion_text(prompt_ids, ids)[0]

    def _seen(self, marker: str) -> str:
        return as_seen(marker, self.codec)

    def _form_as_seen(self) -> ToolFormat:
        return format_as_seen(self.form, self.codec)


def _end_without(marker: str, text: str) -> int:
    """Return the length of a text without a suffix that may be the beginning of a marker."""
    sizes = range(min(len(marker) - 1, len(text)), 0, -1)
    return len(text) - next((size for size in sizes if text.endswith(marker[:size])), 0)
