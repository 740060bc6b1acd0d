"""What an assistant's answer consists of: reasoning, content, calls of tools."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stars_engine.chat.formats import Calls, ToolFormat, marked_text, read_calls
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

    def read(self, prompt_ids: Sequence[int], ids: Sequence[int], text: str) -> Message:
        """Return an answer as a message: finished or not, nothing of it is lost."""
        reasoning, rest = self._thought(marked_text(self.codec, prompt_ids, ids, text))
        calls = read_calls(rest, self.form, self.tools) if self.tools else Calls(rest)
        return Message(
            role="assistant",
            content=calls.content,
            reasoning=reasoning,
            tool_calls=calls.valid,
            invalid_tool_calls=calls.invalid,
        )

    def _thought(self, text: str) -> tuple[str | None, str]:
        begun = text.lstrip()
        if not (self.in_thought or begun.startswith(OPENING)):
            return None, text
        thought, _, rest = begun.removeprefix(OPENING).partition(CLOSING)
        return thought.strip(), rest.lstrip("\n")
