"""Which spans of an answer a reward model scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class AnswerSpans(Protocol):
    """Finds the prose in an answer that may also contain reasoning and tool calls.

    Marked text is the text of an answer in which control tokens are visible.
    """

    @property
    def reasoning_mode(self) -> str:
        """Whether the answer contains reasoning; "open" if the prompt has begun it."""

    @property
    def must_call(self) -> bool:
        """Whether the answer must consist of tool calls."""

    def marked(self, prompt_ids: Sequence[int], ids: Sequence[int], text: str) -> str:
        """Return the marked text of an answer."""

    def prose(self, marked: str) -> tuple[int, int]:
        """Return where the prose begins and ends in marked text."""

    def judged(
        self, prompt_ids: Sequence[int], ids: Sequence[int], text: str
    ) -> tuple[str, tuple[int, ...]]:
        """Return the prose of an answer: its text, and its token ids."""

    def prose_of_prefill(self, prefill: str) -> str:
        """Return the prose of an assistant prefill."""
