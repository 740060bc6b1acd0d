"""Remember values for prompts by their identity."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from stars_engine.types import RewardPrompt

Value = TypeVar("Value")

MAX_PROMPTS = 512
MAX_CHARS = 16_000_000  # of the prompts that are held


class PromptMemo(Generic[Value]):
    """Values by prompt; the least recently set ones are dropped.

    Prompts are compared by identity, because hashing a long prompt takes long. They are held with
    their values, so their total length is bounded, too.
    """

    def __init__(self) -> None:
        self._values: OrderedDict[tuple[int, Hashable], tuple[RewardPrompt, Value]] = OrderedDict()
        self._num_chars = 0

    def get(self, prompt: RewardPrompt, key: Hashable = None) -> Value | None:
        """Return the value of a prompt and a key; None if there is none."""
        found = self._values.get((id(prompt), key))
        return None if found is None or found[0] is not prompt else found[1]

    def set(self, prompt: RewardPrompt, value: Value, key: Hashable = None) -> None:
        """Set the value of a prompt and a key."""
        before = self._values.pop((id(prompt), key), None)
        self._num_chars += num_chars(prompt) - (0 if before is None else num_chars(before[0]))
        self._values[id(prompt), key] = prompt, value
        while len(self._values) > MAX_PROMPTS or self._num_chars > MAX_CHARS:
            _, (dropped, _) = self._values.popitem(last=False)
            self._num_chars -= num_chars(dropped)
            if not self._values:
                return


def num_chars(prompt: RewardPrompt) -> int:
    """Return about how long a prompt is; a token id counts as a character."""
    messages = sum(len(message.content) for message in prompt.messages or ())
    return len(prompt.text) + len(prompt.token_ids or ()) + messages
