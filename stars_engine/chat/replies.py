"""What an assistant's answer consists of: reasoning, content, calls of tools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stars_engine.chat.formats import Calls, ToolFormat, marked_text, read_calls, start_of_calls
from stars_engine.codec import Codec
from stars_engine.messages import Message, Tool

OPENING, CLOSING = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class ReplyReader:
    """Reads the answers to one conversation.

    Attributes:
        codec: The language model's tokenizer.
        form: How the model writes calls.
        tools: What it may call; without any, nothing is read as a call.
        in_thought: Whether the prompt ends within a thought.
    """

    codec: Codec
    form: ToolFormat
    tools: tuple[Tool, ...] = ()
    in_thought: bool = False

    def marked(self, prompt_ids: Sequence[int], ids: Sequence[int], text: str) -> str:
        """Return an answer's text with the markers in it that are control tokens."""
        return marked_text(self.codec, prompt_ids, ids, text)

    def read(self, prompt_ids: Sequence[int], ids: Sequence[int], text: str) -> Message:
        """Return an answer as a message: finished or not, nothing of it is lost."""
        reasoning, rest = self._thought(self.marked(prompt_ids, ids, text))
        calls = read_calls(rest, self.form, self.tools) if self.tools else Calls(rest)
        return Message(
            role="assistant",
            content=calls.content,
            reasoning=reasoning,
            tool_calls=calls.valid,
            invalid_tool_calls=calls.invalid,
        )

    def judged(
        self, prompt_ids: Sequence[int], ids: Sequence[int], text: str
    ) -> tuple[str, tuple[int, ...]]:
        """Return the prose of an answer, as text and as the ids of the tokens that begin in it."""
        marked = self.marked(prompt_ids, ids, text)
        begin, end = self.prose(marked)
        end = self._without_beginning(marked, begin, end)
        if (begin, end) == (0, len(marked)):
            return text, tuple(ids)
        starts = [
            len(self.marked(prompt_ids, ids[:size], self._text(prompt_ids, ids[:size])))
            for size in range(len(ids))
        ]
        kept = (token for start, token in zip(starts, ids, strict=True) if begin <= start < end)
        return marked[begin:end], tuple(kept)

    def _text(self, prompt_ids: Sequence[int], ids: Sequence[int]) -> str:
        return self.codec.completion_text(prompt_ids, ids)[0]

    def prose(self, marked: str) -> tuple[int, int]:
        """Return where, in an answer with its markers, the prose begins and ends.

        Before it stands reasoning, behind it stand calls. What is prose now stays prose as the
        answer goes on, but for the first characters of a call that has no marker.
        """
        begin, begun = 0, marked.lstrip()
        if begun and OPENING.startswith(begun):
            return len(marked), len(marked)  # as it seems
        if self._thinks(marked):
            end = marked.find(CLOSING)
            begin = len(marked) if end < 0 else end + len(CLOSING)
            begin += len(marked[begin:]) - len(marked[begin:].lstrip())
        if not self.tools:
            return begin, len(marked)
        return begin, begin + start_of_calls(marked[begin:], self.form)

    def _thinks(self, text: str) -> bool:
        return self.in_thought or text.lstrip().startswith(OPENING)

    def _without_beginning(self, marked: str, begin: int, end: int) -> int:
        """Return where prose ends if what may be the beginning of a marker is none of it."""
        marker = self.form.marker if self.tools else ""
        sizes = range(min(len(marker) - 1, end - begin), 0, -1)
        return next((end - n for n in sizes if marked[begin:end].endswith(marker[:n])), end)

    def _thought(self, text: str) -> tuple[str | None, str]:
        if not self._thinks(text):
            return None, text
        thought, _, rest = text.lstrip().removeprefix(OPENING).partition(CLOSING)
        return thought.strip(), rest.lstrip("\n")
