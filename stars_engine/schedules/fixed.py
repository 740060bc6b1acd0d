"""Thresholds given as numbers, and no thresholds."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, field_validator

from stars_engine.schedules.base import BaseSchedule, Progress
from stars_engine.schema import not_nan

_MEANING = "a threshold is a number, inf or -inf"


class ConstantSchedule(BaseSchedule):
    """The same threshold for every segment."""

    kind: Literal["constant"] = "constant"
    value: float = Field(description="the threshold, in reward units", examples=[1.5])

    @field_validator("value")
    @classmethod
    def _is_a_threshold(cls, value: float) -> float:
        not_nan(value, _MEANING)
        return value

    def threshold(self, progress: Progress) -> float:
        """See `BaseSchedule`."""
        return self.value

    def final_threshold(self, progress: Progress) -> float:
        """See `BaseSchedule`."""
        return self.value


class PerSegmentSchedule(BaseSchedule):
    """One threshold per segment index; later segments use the last one."""

    kind: Literal["per_segment"] = "per_segment"
    values: tuple[float, ...] = Field(
        min_length=1,
        description="thresholds of segments 0, 1, 2, ..., in reward units",
        examples=[[0.5, 0.9, 1.2]],
    )

    @field_validator("values")
    @classmethod
    def _are_thresholds(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        for value in values:
            not_nan(value, _MEANING)
        return values

    def threshold(self, progress: Progress) -> float:
        """See `BaseSchedule`."""
        return self.values[min(progress.segment_index, len(self.values) - 1)]

    def final_threshold(self, progress: Progress) -> float:
        """See `BaseSchedule`."""
        return self.values[-1]


class NoSchedule(BaseSchedule):
    """Accepts everything: plain sampling that reports rewards."""

    kind: Literal["none"] = "none"

    def threshold(self, progress: Progress) -> float:
        """See `BaseSchedule`."""
        return -math.inf

    def final_threshold(self, progress: Progress) -> float:
        """See `BaseSchedule`."""
        return -math.inf
