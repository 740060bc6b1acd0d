"""What a reward model reads, and what it returns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stars_engine.messages import Message


@dataclass(frozen=True, slots=True)
class RewardPrompt:
    """A prompt in all forms that reward models can read.

    Attributes:
        text: Plain text without control tokens.
        token_ids: The language model's ids of the prompt; None if the reward model gets another
            prompt than the language model.
        messages: The messages, if the prompt is a conversation.
    """

    text: str
    token_ids: tuple[int, ...] | None = None
    messages: tuple[Message, ...] | None = None


@dataclass(frozen=True, slots=True)
class RewardInput:
    """The input of one reward: a prompt and the *whole* completion so far.

    Attributes:
        prompt: The prompt.
        text: Completion text, without stop strings and an incomplete last character. With
            `AlignParams.lookahead` it includes the candidate's greedy continuation.
        token_ids: The same completion as ids of the language model, without end-of-text.
        finished: True if the model, or a stop string, ends the answer here.
        features: What the reward's probes read while the answer was drafted, by probe: `(1 +
            tokens, features)` arrays, the first row for the last token of the prompt.
    """

    prompt: RewardPrompt
    text: str
    token_ids: tuple[int, ...]
    finished: bool = False
    features: Mapping[Any, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Score:
    """One reward.

    Attributes:
        value: The reward; a non-finite one rejects the candidate.
        vetoed: True if the reward is below a veto floor, which rejects the candidate whatever the
            threshold.
        num_tokens: Tokens that the reward model read.
        failed: True if the reward model failed and its policy is to reject the candidate.
        truncated: True if the prompt was truncated to fit the reward model's context.
        parts: The value of each part of a composite reward, by name; None for a part that failed.
    """

    value: float
    vetoed: bool = False
    num_tokens: int = 0
    failed: bool = False
    truncated: bool = False
    parts: Mapping[str, float | None] | None = None

    @property
    def eligible(self) -> bool:
        """Whether the candidate may be accepted or forced."""
        return math.isfinite(self.value) and not self.vetoed
