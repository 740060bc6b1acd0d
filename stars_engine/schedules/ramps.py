"""Thresholds that rise with the length of the answer, from r0 to r*."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from stars_engine.schedules.base import BaseSchedule, Progress

CARDS_INITIAL_WEIGHT = 0.5  # alpha in CARDS (arXiv 2406.16306); STARS does not publish a value


class RampSchedule(BaseSchedule):
    """tau = min(r*, r0 + (r* - r0) * shape(t / ramp_tokens)); r* after the end of the ramp.

    r0 is `initial`, or (1 - alpha) * RM(x, "") + alpha * r* with alpha = `initial_weight`, the form
    that CARDS published. If neither is set, alpha is 0.5 as in CARDS. If r0 is above r*, tau is
    constantly r*.
    """

    target: float = Field(
        allow_inf_nan=False,
        description="r*, the threshold at the end of the ramp, in reward units",
        examples=[8.0],
    )
    initial: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="r0, the threshold at the start of the ramp, in reward units",
        examples=[2.0],
    )
    initial_weight: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None,
        description="alpha: r0 = (1 - alpha) * RM(x, '') + alpha * r*",
        examples=[0.5],
    )
    ramp_tokens: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="length of the ramp in completion tokens; None means max_tokens",
        examples=[128],
    )

    @model_validator(mode="after")
    def _one_initial(self) -> Self:
        if self.initial is not None and self.initial_weight is not None:
            raise ValueError(
                f"initial={self.initial} and initial_weight={self.initial_weight} both set r0. "
                "Hint: set only one of them"
            )
        return self

    @property
    def needs_prompt_reward(self) -> bool:
        """True if r0 depends on RM(x, "")."""
        return self.initial is None

    def threshold(self, progress: Progress) -> float:
        """See `BaseSchedule`."""
        start = self._start(progress)
        ramp_tokens = progress.max_tokens if self.ramp_tokens is None else self.ramp_tokens
        fraction = min(1.0, progress.num_tokens / ramp_tokens)
        return min(self.target, start + (self.target - start) * self.shape(fraction))

    def final_threshold(self, progress: Progress) -> float:
        """See `BaseSchedule`."""
        return self.target

    @staticmethod
    @abstractmethod
    def shape(fraction: float) -> float:
        """Return the height of the ramp, 0 to 1, at a fraction of its length."""

    def _start(self, progress: Progress) -> float:
        if self.initial is not None:
            return self.initial
        weight = CARDS_INITIAL_WEIGHT if self.initial_weight is None else self.initial_weight
        return (1 - weight) * progress.prompt_reward + weight * self.target


class LinearSchedule(RampSchedule):
    """A linear ramp: tau = min(r*, r0 + (r* - r0) * t / ramp_tokens) (STARS, CARDS).

    r0 is `initial`, or (1 - alpha) * RM(x, "") + alpha * r* with alpha = `initial_weight`, the form
    that CARDS published. If neither is set, alpha is 0.5 as in CARDS. If r0 is above r*, tau is
    constantly r*. After the end of the ramp, tau is r*.
    """

    kind: Literal["linear"] = "linear"

    @staticmethod
    def shape(fraction: float) -> float:
        """See `RampSchedule`."""
        return fraction


class CosineSchedule(RampSchedule):
    """A ramp that is flat at both ends: `LinearSchedule` with (1 - cos(pi x)) / 2 for x."""

    kind: Literal["cosine"] = "cosine"

    @staticmethod
    def shape(fraction: float) -> float:
        """See `RampSchedule`."""
        return (1 - math.cos(math.pi * fraction)) / 2
