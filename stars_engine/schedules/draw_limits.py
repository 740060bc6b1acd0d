"""Limits on the draws of a segment that depend on the reward of its prefix."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from stars_engine.schema import Schema


class DrawLimit(Schema):
    """Fewer draws for segments whose prefix has a reward in a range."""

    max_attempts: int = Field(
        ge=1, description="maximum draws of such a segment, including the first", examples=[3]
    )
    low: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="lowest reward of such a prefix; None: no lower end",
        examples=[0.9],
    )
    high: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="highest reward of such a prefix; None: no upper end",
        examples=[-0.4],
    )
    share: float | None = Field(
        default=None,
        description="share of such prefixes in the pilot, 0 to 1",
        examples=[0.04],
    )
    saved: float | None = Field(
        default=None,
        description="share of the draws after the first that the limit saves in the pilot, at "
        "equal thresholds; lower end of its 95% interval",
        examples=[0.4],
    )

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.low is None and self.high is None:
            raise ValueError("low and high are both None. Hint: set at least one of them")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low={self.low} is above high={self.high}. Hint: swap them")
        return self

    def holds_for(self, prefix_reward: float) -> bool:
        """Return whether a prefix's reward is in the range; False for nan."""
        above = self.low is None or prefix_reward >= self.low
        return above and (self.high is None or prefix_reward <= self.high)

    def in_words(self) -> str:
        """Return the range as text."""
        if self.low is None:
            return f"up to {self.high:.3g}"
        return f"from {self.low:.3g}" + ("" if self.high is None else f" to {self.high:.3g}")
