"""Threshold schedules: progress and the prefix's reward in, threshold out. Pure config objects."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from stars_engine.schema import Schema

CARDS_INITIAL_WEIGHT = 0.5  # alpha of CARDS (arXiv 2406.16306); STARS publishes no value


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a candidate stands.

    Attributes:
        segment_index: Index of the segment being drafted, from 0.
        num_tokens: Completion tokens *including* this candidate.
        max_tokens: The request's limit.
        prefix_reward: RM(x, accepted text); for the first segment RM(x, "").
        prompt_reward: RM(x, "").

    `prompt_reward`, and with it the first `prefix_reward`, is nan unless the schedule
    `needs_prompt_reward`: it costs a reward call.
    """

    segment_index: int
    num_tokens: int
    max_tokens: int
    prefix_reward: float = math.nan
    prompt_reward: float = math.nan


class BaseSchedule(Schema, ABC):
    """What the loop asks of every schedule."""

    @property
    def needs_prompt_reward(self) -> bool:
        """True if RM(x, "") must be known before the first segment is judged."""
        return False

    @abstractmethod
    def threshold(self, progress: Progress) -> float:
        """Return tau for a candidate that ends at `progress`."""

    @abstractmethod
    def final_threshold(self, progress: Progress) -> float:
        """Return the threshold at the schedule's end, for `terminal="target"`."""


class LinearSchedule(BaseSchedule):
    """A ramp from r0 to r*: tau = min(r*, r0 + (r* - r0) * t / ramp_tokens) (STARS, CARDS).

    r0 is `initial`, or (1 - alpha) * RM(x, "") + alpha * r* with alpha = `initial_weight` (the
    form published by CARDS, whose alpha of 0.5 holds when neither is given). An r0 above r* gives
    the constant r*. Past the ramp's end tau stays at r*.
    """

    kind: Literal["linear"] = "linear"
    target: float = Field(
        allow_inf_nan=False,
        description="r*, the threshold at the end of the ramp, in reward units",
        examples=[8.0],
    )
    initial: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="r0, the threshold at the beginning, in reward units",
        examples=[2.0],
    )
    initial_weight: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None,
        description="alpha: r0 = (1 - alpha) * RM(x, '') + alpha * r*",
        examples=[0.5],
    )
    ramp_tokens: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="completion tokens until r* is reached; None means max_tokens",
        examples=[128],
    )

    @model_validator(mode="after")
    def _one_initial(self) -> Self:
        if self.initial is not None and self.initial_weight is not None:
            raise ValueError(
                f"initial={self.initial} and initial_weight={self.initial_weight} both set r0; "
                "give one of them"
            )
        return self

    @property
    def needs_prompt_reward(self) -> bool:
        """True if r0 is a mixture with RM(x, "")."""
        return self.initial is None

    def threshold(self, progress: Progress) -> float:
        """See `BaseSchedule`."""
        start = self._start(progress)
        ramp_tokens = progress.max_tokens if self.ramp_tokens is None else self.ramp_tokens
        fraction = min(1.0, progress.num_tokens / ramp_tokens)
        return min(self.target, start + (self.target - start) * fraction)

    def final_threshold(self, progress: Progress) -> float:
        """See `BaseSchedule`."""
        return self.target

    def _start(self, progress: Progress) -> float:
        if self.initial is not None:
            return self.initial
        weight = CARDS_INITIAL_WEIGHT if self.initial_weight is None else self.initial_weight
        return (1 - weight) * progress.prompt_reward + weight * self.target


class ConstantSchedule(BaseSchedule):
    """The same threshold for every segment."""

    kind: Literal["constant"] = "constant"
    value: float = Field(description="the threshold, in reward units", examples=[1.5])

    @field_validator("value")
    @classmethod
    def _is_a_threshold(cls, value: float) -> float:
        return _not_nan(value)

    def threshold(self, progress: Progress) -> float:
        """See `BaseSchedule`."""
        return self.value

    def final_threshold(self, progress: Progress) -> float:
        """See `BaseSchedule`."""
        return self.value


class PerSegmentSchedule(BaseSchedule):
    """One threshold per segment index; past the list's end its last one holds."""

    kind: Literal["per_segment"] = "per_segment"
    values: tuple[float, ...] = Field(
        min_length=1,
        description="thresholds of segments 0, 1, 2, ..., in reward units",
        examples=[[0.5, 0.9, 1.2]],
    )

    @field_validator("values")
    @classmethod
    def _are_thresholds(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(_not_nan(value) for value in values)

    def threshold(self, progress: Progress) -> float:
        """See `BaseSchedule`."""
        return self.values[min(progress.segment_index, len(self.values) - 1)]

    def final_threshold(self, progress: Progress) -> float:
        """See `BaseSchedule`."""
        return self.values[-1]


class NoSchedule(BaseSchedule):
    """Accept everything: plain sampling, with its rewards reported."""

    kind: Literal["none"] = "none"

    def threshold(self, progress: Progress) -> float:
        """See `BaseSchedule`."""
        return -math.inf

    def final_threshold(self, progress: Progress) -> float:
        """See `BaseSchedule`."""
        return -math.inf


Schedule = Annotated[
    LinearSchedule | ConstantSchedule | PerSegmentSchedule | NoSchedule,
    Field(discriminator="kind"),
]


def _not_nan(value: float) -> float:
    if math.isnan(value):
        raise ValueError("a threshold is a number, or inf or -inf; nan compares with nothing")
    return value
