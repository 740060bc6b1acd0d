"""Thresholds found by calibration: a regressed baseline, and how far above it to ask."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from stars_engine.files import Filed
from stars_engine.schedules.base import BaseSchedule, Progress
from stars_engine.schema import Schema


class Line(Schema):
    """tau = intercept + slope * RM(x, prefix) + offset, and no higher than the ceiling."""

    intercept: float = Field(
        allow_inf_nan=False,
        description="a, of a draft's reward regressed on its prefix's; reward units",
        examples=[0.1],
    )
    slope: float = Field(
        allow_inf_nan=False, description="b, of the same regression", examples=[0.8]
    )
    offset: float = Field(
        allow_inf_nan=False,
        description="c, how far above the baseline a draft must be; reward units",
        examples=[0.3],
    )
    sigma: float = Field(
        ge=0,
        allow_inf_nan=False,
        description="standard deviation of drafts about the baseline; reward units",
        examples=[0.6],
    )

    ceiling: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="highest threshold ever asked for, where the reward has a highest value: just "
        "below it; reward units. None: there is no such value",
        examples=[0.95],
    )

    def baseline(self, prefix_reward: float) -> float:
        """Return the reward expected of a draft that continues a prefix."""
        if self.slope == 0:
            return self.intercept  # whatever the prefix's reward, nan too
        return self.intercept + self.slope * prefix_reward

    def threshold(self, prefix_reward: float) -> float:
        """Return tau."""
        tau = self.baseline(prefix_reward) + self.offset
        return tau if self.ceiling is None or not tau > self.ceiling else self.ceiling


class Estimate(Schema):
    """A number with the interval in which it is expected to lie 95 times in 100."""

    value: float = Field(description="the estimate", examples=[2.7])
    low: float = Field(description="lower end of the interval", examples=[2.5])
    high: float = Field(description="upper end of the interval", examples=[2.9])

    def holds(self, observed: float) -> bool:
        """Whether an observation lies inside."""
        return self.low <= observed <= self.high

    def shown(self) -> str:
        """Return the estimate and its interval as text."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Effort(Schema):
    """What aligned text costs, predicted by a calibration or observed."""

    acceptance: Estimate = Field(
        description="acceptance probability of a segment's first draft, mean over segments"
    )
    budget: Estimate = Field(description="drafted tokens over kept tokens")
    forced: Estimate = Field(description="share of segments kept without acceptance")
    stopped: Estimate | None = Field(
        default=None,
        description="share of answers that end where no draw was accepted, as "
        "on_exhausted='stop' has it",
    )


class CurvePoint(Schema):
    """What the same offset above the baseline, in every segment, would come to."""

    offset_sigmas: float = Field(description="offset over sigma of its stage", examples=[0.5])
    acceptance: float = Field(description="acceptance probability of a first draft, 0 to 1")
    budget: float = Field(description="drafted over kept tokens")
    forced: float = Field(
        description="share of segments of which no draw is accepted, 0 to 1: they are kept all the "
        "same, or the answer stops before them"
    )


class CalibratedSchedule(Filed, BaseSchedule):
    """tau_k = a_k + b_k * RM(x, prefix) + c_k for segment k; past the last stage it holds.

    The reward of the prefix is known to the loop, so each draft is judged by what it adds to what
    is there: easy prompts and hard ones spend alike. Made by `stars_engine.calibrate`.

    A stage depends on those before it alone, not on `max_tokens`: thresholds made for long answers
    are those made for short ones, and more. A last segment that `max_tokens` cuts short is judged
    like a whole one.
    """

    kind: Literal["calibrated"] = "calibrated"
    stages: tuple[Line, ...] = Field(
        min_length=1, description="thresholds of segments 0, 1, 2, ...", repr=False
    )
    terminals: tuple[Line | None, ...] = Field(
        default=(),
        description="thresholds of candidates with which the model ends the answer, in segments "
        "0, 1, 2, ...; None: that of the segment",
        repr=False,
    )
    segment_len: int = Field(
        ge=1, description="tokens judged together that it was made for", examples=[8]
    )
    beta: float = Field(
        default=0.0, ge=0, description="acceptance softness that it was made for; reward units"
    )
    max_attempts: int = Field(default=20, ge=1, description="draws per segment it was made for")
    made_for: dict[str, Any] = Field(
        default_factory=dict,
        description="everything else that it depends on: models, sampling, segments, pilot, target",
        repr=False,
    )
    predicted: Effort | None = Field(
        default=None, description="what the pilot predicts for other prompts", repr=False
    )
    curve: tuple[CurvePoint, ...] = Field(
        default=(), description="what other offsets would have come to, by the pilot", repr=False
    )

    @model_validator(mode="after")
    def _terminals_belong_to_stages(self) -> Self:
        if len(self.terminals) not in (0, len(self.stages)):
            raise ValueError(
                f"{len(self.terminals)} terminals for {len(self.stages)} stages; give one for each "
                "stage (None where there is none), or none at all"
            )
        return self

    @property
    def max_tokens(self) -> int | None:
        """Completion tokens up to which its stages were measured; None if that is not known."""
        found = self.made_for.get("pilot", {}).get("max_tokens")
        return found if isinstance(found, int) else None

    @property
    def carried(self) -> dict[str, Any]:
        """Settings of the test that it was made for; they hold where no others are given."""
        carried = {"segment_end", "min_segment_len", "lookahead"}
        others = {k: v for k, v in self.made_for.get("align", {}).items() if k in carried}
        return {
            **{name: value for name, value in others.items() if value is not None},
            "segment_len": self.segment_len,
            "beta": self.beta,
            "max_attempts": self.max_attempts,
        }

    @property
    def needs_prompt_reward(self) -> bool:
        """True if the first segment is measured by RM(x, "")."""
        lines = [self.stages[0], *self.terminals[:1]]
        return any(line is not None and line.slope != 0 for line in lines)

    def line(self, segment_index: int, *, ends_text: bool) -> Line:
        """Return what a candidate for a segment is measured by."""
        index = min(segment_index, len(self.stages) - 1)
        terminal = self.terminals[index] if ends_text and self.terminals else None
        return self.stages[index] if terminal is None else terminal

    def threshold(self, progress: Progress) -> float:
        """See `BaseSchedule`."""
        line = self.line(progress.segment_index, ends_text=progress.ends_text)
        return line.threshold(progress.prefix_reward)

    def final_threshold(self, progress: Progress) -> float:
        """Return what the last stage asks of a continuation of this prefix."""
        return self.stages[-1].threshold(progress.prefix_reward)
