"""Thresholds from a calibration: a regressed baseline plus an offset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from stars_engine.display.pages import table
from stars_engine.files.config_files import Filed
from stars_engine.schedules.base import BaseSchedule, Progress
from stars_engine.schedules.draw_limits import DrawLimit
from stars_engine.schema import Schema

WORTHWHILE = 1.2  # expected advantage below which Best-of-N does as well

OnUntrusted = Literal["warn", "best_of_n", "raise"]


class Line(Schema):
    """tau = intercept + slope * RM(x, prefix) + offset, limited by the ceiling."""

    intercept: float = Field(
        allow_inf_nan=False,
        description="a, from regressing drafts' rewards on their prefixes' rewards; reward units",
        examples=[0.1],
    )
    slope: float = Field(
        allow_inf_nan=False, description="b, from the same regression", examples=[0.8]
    )
    offset: float = Field(
        allow_inf_nan=False,
        description="c, how far above the baseline a draft must be; reward units",
        examples=[0.3],
    )
    sigma: float = Field(
        ge=0,
        allow_inf_nan=False,
        description="standard deviation of drafts around the baseline; reward units",
        examples=[0.6],
    )

    ceiling: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="upper limit of the threshold, just below the highest reward if the reward has "
        "one; reward units. None: no limit",
        examples=[0.95],
    )

    def baseline(self, prefix_reward: float) -> float:
        """Return the expected reward of a draft that continues a prefix."""
        if self.slope == 0:
            return self.intercept  # also if the prefix's reward is nan
        return self.intercept + self.slope * prefix_reward

    def threshold(self, prefix_reward: float) -> float:
        """Return tau."""
        tau = self.baseline(prefix_reward) + self.offset
        return tau if self.ceiling is None or not tau > self.ceiling else self.ceiling


class Estimate(Schema):
    """An estimate with its 95% interval."""

    value: float = Field(description="the estimate", examples=[2.7])
    low: float = Field(description="lower end of the interval", examples=[2.5])
    high: float = Field(description="upper end of the interval", examples=[2.9])

    def holds(self, observed: float) -> bool:
        """Return whether an observation lies in the interval."""
        return self.low <= observed <= self.high

    def shown(self) -> str:
        """Return the estimate and its interval as text."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Effort(Schema):
    """The cost of aligned text, predicted by a calibration or observed."""

    acceptance: Estimate = Field(
        description="acceptance probability of a segment's first draft, mean over segments"
    )
    budget: Estimate = Field(description="drafted tokens over kept tokens")
    forced: Estimate = Field(description="share of segments kept without acceptance")
    stopped: Estimate | None = Field(
        default=None,
        description="share of answers that end because no draw was accepted, with "
        "on_exhausted='stop'",
    )


class CurvePoint(Schema):
    """The cost of one offset above the baseline, used for every segment."""

    offset_sigmas: float = Field(description="offset over the sigma of a stage", examples=[0.5])
    acceptance: float = Field(description="acceptance probability of a first draft, 0 to 1")
    budget: float = Field(description="drafted over kept tokens")
    forced: float = Field(
        description="share of segments without an accepted draw, 0 to 1: they are forced, or the "
        "answer stops before them"
    )


class PrefixTrust(Schema):
    """What the reward of unfinished text says of the reward of the whole answer.

    Measured on plain answers, whose prefixes no threshold has accepted.
    """

    advantage: Estimate = Field(
        description="expected advantage over Best-of-N: the sum over segments of the correlation "
        "of what a segment adds to the reward with the final reward, over that of the final "
        "reward; 0 if the reward does not vary"
    )
    spearman_midway: float = Field(
        description="rank correlation of the reward nearest to half of the answer with the final "
        "reward, among answers to one prompt"
    )
    num_prompts: int = Field(description="number of prompts")
    num_answers: int = Field(description="number of plain answers to them")

    @property
    def is_low(self) -> bool:
        """Whether Best-of-N is expected to do as well, by the whole interval."""
        return self.advantage.high < WORTHWHILE


class CalibratedSchedule(Filed, BaseSchedule):
    """tau_k = a_k + b_k * RM(x, prefix) + c_k for segment k; later segments use the last stage.

    Each draft is judged relative to the reward of its prefix, so easy and hard prompts cost the
    same. Created by `stars_engine.calibrate`.

    A stage depends only on the stages before it, not on `max_tokens`: thresholds for long answers
    start with those for short answers. A last segment that `max_tokens` cuts short is judged like a
    whole one.
    """

    kind: Literal["calibrated"] = "calibrated"
    stages: tuple[Line, ...] = Field(
        min_length=1, description="thresholds of segments 0, 1, 2, ...", repr=False
    )
    terminals: tuple[Line | None, ...] = Field(
        default=(),
        description="thresholds of candidates that end the answer, in segments 0, 1, 2, ...; None: "
        "the threshold of the segment",
        repr=False,
    )
    draw_limits: tuple[DrawLimit | None, ...] = Field(
        default=(),
        description="limits on the draws of segments 0, 1, 2, ... by the reward of the prefix; "
        "None: `max_attempts`",
        repr=False,
    )
    segment_len: int = Field(
        ge=1, description="tokens judged together in the calibration", examples=[8]
    )
    beta: float = Field(
        default=0.0, ge=0, description="acceptance softness in the calibration; reward units"
    )
    max_attempts: int = Field(default=20, ge=1, description="draws per segment in the calibration")
    made_for: dict[str, Any] = Field(
        default_factory=dict,
        description="all other dependencies: models, sampling, segments, pilot, target",
        repr=False,
    )
    predicted: Effort | None = Field(
        default=None, description="cost that the pilot predicts for other prompts", repr=False
    )
    curve: tuple[CurvePoint, ...] = Field(
        default=(), description="cost of other offsets, by the pilot", repr=False
    )
    trust: PrefixTrust | None = Field(
        default=None,
        description="how far the reward of unfinished text can be trusted; None: not measured",
        repr=False,
    )
    on_untrusted: OnUntrusted = Field(
        default="warn",
        description="what calls do if `trust` is low: warn (log it once, and go on), best_of_n "
        "(sample whole answers at the predicted budget, and return the best), or raise",
        examples=["best_of_n"],
    )

    @model_validator(mode="after")
    def _belong_to_stages(self) -> Self:
        for name in ("terminals", "draw_limits"):
            count = len(getattr(self, name))
            if count not in (0, len(self.stages)):
                raise ValueError(
                    f"{count} {name} for {len(self.stages)} stages. Hint: give one for each stage "
                    f"(None if it has none), or leave {name} empty"
                )
        return self

    @model_serializer(mode="wrap")
    def _without_absent_limits(self, handler: SerializerFunctionWrapHandler) -> Any:
        """Omit `draw_limits` if there are none, as in files written before the field existed."""
        values = handler(self)
        if not self.draw_limits:
            values.pop("draw_limits", None)
        return values

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Show the number of stages and the predicted cost."""
        yield "num_stages", len(self.stages)
        yield from super().__repr_args__()
        if self.predicted is not None:
            yield "predicted_budget", round(self.predicted.budget.value, 2)

    def _repr_html_(self) -> str:
        """Return the predicted cost and the first thresholds for a notebook."""
        lines = [
            (index, f"{line.intercept:.3g} + {line.slope:.3g} · r + {line.offset:.3g}")
            for index, line in enumerate(self.stages[:4])
        ]
        shown = table(("segment", "threshold, for a prefix with reward r"), lines)
        if self.predicted is None:
            return shown
        estimates = {name: getattr(self.predicted, name) for name in Effort.model_fields}
        rows = [(name, found.shown()) for name, found in estimates.items() if found is not None]
        return table(("predicted", "value [95% interval]"), rows) + shown

    @property
    def is_untrusted(self) -> bool:
        """Whether the reward of unfinished text was measured, and is not worth following."""
        return self.trust is not None and self.trust.is_low

    @property
    def equivalent_n(self) -> int:
        """The N of Best-of-N that drafts about as many tokens, at least 2."""
        budget = 2.0 if self.predicted is None else self.predicted.budget.value
        return max(2, round(budget))

    @property
    def max_tokens(self) -> int | None:
        """Number of completion tokens that its stages cover; None if unknown."""
        found = self.made_for.get("pilot", {}).get("max_tokens")
        return found if isinstance(found, int) else None

    @property
    def carried(self) -> dict[str, Any]:
        """Acceptance settings of the calibration; used where the caller sets no others."""
        carried = {"segment_end", "min_segment_len", "max_entropy", "lookahead"}
        others = {k: v for k, v in self.made_for.get("align", {}).items() if k in carried}
        return {
            **{name: value for name, value in others.items() if value is not None},
            "segment_len": self.segment_len,
            "beta": self.beta,
            "max_attempts": self.max_attempts,
        }

    @property
    def needs_prompt_reward(self) -> bool:
        """True if the baseline or the limit of the first segment depends on RM(x, "")."""
        lines = [self.stages[0], *self.terminals[:1]]
        is_limited = any(limit is not None for limit in self.draw_limits[:1])
        return is_limited or any(line is not None and line.slope != 0 for line in lines)

    def draw_limit(self, segment_index: int, prefix_reward: float) -> int | None:
        """See `BaseSchedule`."""
        if not self.draw_limits:
            return None
        limit = self.draw_limits[min(segment_index, len(self.draw_limits) - 1)]
        if limit is None or not limit.holds_for(prefix_reward):
            return None
        return limit.max_attempts

    def line(self, segment_index: int, *, ends_text: bool) -> Line:
        """Return the line that judges a candidate of a segment."""
        index = min(segment_index, len(self.stages) - 1)
        terminal = self.terminals[index] if ends_text and self.terminals else None
        return self.stages[index] if terminal is None else terminal

    def threshold(self, progress: Progress) -> float:
        """See `BaseSchedule`."""
        line = self.line(progress.segment_index, ends_text=progress.ends_text)
        return line.threshold(progress.prefix_reward)

    def final_threshold(self, progress: Progress) -> float:
        """Return the threshold of the last stage for this prefix."""
        return self.stages[-1].threshold(progress.prefix_reward)
