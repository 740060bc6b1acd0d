"""What every schedule is: progress and the prefix's reward in, a threshold out. Pure."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from stars_engine.schema import Schema


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a candidate stands.

    Attributes:
        segment_index: Index of the segment being drafted, from 0.
        num_tokens: Completion tokens *including* this candidate.
        max_tokens: The request's limit.
        prefix_reward: RM(x, accepted text); for the first segment RM(x, "").
        prompt_reward: RM(x, "").
        ends_text: Whether the model itself ends the answer with this candidate.

    `prompt_reward`, and with it the first `prefix_reward`, is nan unless the schedule
    `needs_prompt_reward`: it costs a reward call.
    """

    segment_index: int
    num_tokens: int
    max_tokens: int
    prefix_reward: float = math.nan
    prompt_reward: float = math.nan
    ends_text: bool = False


class BaseSchedule(Schema, ABC):
    """What the loop asks of every schedule."""

    @property
    def needs_prompt_reward(self) -> bool:
        """True if RM(x, "") must be known before the first segment is judged."""
        return False

    @property
    def is_live(self) -> bool:
        """True if it holds an object that no file can hold."""
        return False

    @abstractmethod
    def threshold(self, progress: Progress) -> float:
        """Return tau for a candidate that ends at `progress`."""

    @abstractmethod
    def final_threshold(self, progress: Progress) -> float:
        """Return the threshold at the schedule's end, for `terminal="target"`."""
