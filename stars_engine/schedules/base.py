"""The base of all schedules: pure functions from progress to a threshold."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from stars_engine.problems import Problem
from stars_engine.schema import Schema


@dataclass(frozen=True, slots=True)
class Progress:
    """The position of a candidate in its answer.

    Attributes:
        segment_index: Index of the segment being drafted, from 0.
        num_tokens: Completion tokens *including* this candidate.
        max_tokens: The token limit of the request.
        prefix_reward: RM(x, accepted text); RM(x, "") for the first segment.
        prompt_reward: RM(x, "").
        ends_text: Whether the model, or a stop string, ends the answer here.

    `prompt_reward`, and with it the first `prefix_reward`, costs a reward call. It is nan unless
    `needs_prompt_reward` is true.
    """

    segment_index: int
    num_tokens: int
    max_tokens: int
    prefix_reward: float = math.nan
    prompt_reward: float = math.nan
    ends_text: bool = False


class BaseSchedule(Schema, ABC):
    """The interface of all schedules."""

    @property
    def needs_prompt_reward(self) -> bool:
        """True if RM(x, "") must be known before the first segment is judged."""
        return False

    def unwritable(self) -> Iterator[Problem]:
        """Return a problem for each value that cannot be written to a file."""
        return iter(())

    def draw_limit(self, segment_index: int, prefix_reward: float) -> int | None:
        """Return the maximum number of draws of a segment; None if only the request limits it.

        It depends on what is known before the first draw, so draws stay independent of each other.

        Args:
            segment_index: Index of the segment, from 0.
            prefix_reward: RM(x, accepted text); nan if it is unknown.
        """
        return None

    @abstractmethod
    def threshold(self, progress: Progress) -> float:
        """Return tau for a candidate at `progress`."""

    @abstractmethod
    def final_threshold(self, progress: Progress) -> float:
        """Return the threshold at the end of the schedule, for `terminal="target"`."""
