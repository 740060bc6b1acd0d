"""Validate a calibration: compare its prediction with the cost on other prompts."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from stars_engine.calibration.effort import observed_effort
from stars_engine.calibration.host import Host, RewardPrompts
from stars_engine.calibration.pilot_prompts import checked_prompts
from stars_engine.config import AlignParams, SamplingParams
from stars_engine.display.pages import table
from stars_engine.schedules import CalibratedSchedule, Effort
from stars_engine.schema import Schema
from stars_engine.types import Prompt


class Verification(Schema):
    """Predicted and observed effort, on prompts that the calibration has not seen."""

    predicted: Effort | None = Field(description="effort that the calibration predicts")
    observed: Effort = Field(description="observed effort; intervals by resampling prompts")
    num_prompts: int = Field(description="number of prompts")
    mean_reward: float = Field(description="mean reward of the answers")

    def rows(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Return the names of the columns, and a row for each part of the effort."""
        found: list[tuple[str, ...]] = []
        for name in Effort.model_fields:
            seen = getattr(self.observed, name)
            if seen is None:
                continue
            expected = getattr(self.predicted, name) if self.predicted else None
            mark = "" if expected is None else "yes" if expected.holds(seen.value) else "no"
            found.append((name, expected.shown() if expected else "-", seen.shown(), mark))
        return ("", "predicted", "observed", "holds"), found

    def summary(self) -> str:
        """Return a table of predicted and observed effort."""
        names, rows = self.rows()
        return "\n".join(f"{a:12} {b:>24} {c:>24}  {d}".rstrip() for a, b, c, d in [names, *rows])

    def _repr_html_(self) -> str:
        """Return the table for a notebook."""
        return table(*self.rows())


def verify(
    engine: Host,
    schedule: CalibratedSchedule,
    prompts: Sequence[Prompt],
    *,
    sampling: SamplingParams | None = None,
    align: AlignParams | None = None,
    reward_prompt: RewardPrompts = None,
    num_answers: int = 1,
    seed: int = 1,
) -> Verification:
    """Generate answers to other prompts with a calibrated schedule, and compare the effort.

    Args:
        engine: A `StarsEngine` with the models of the calibration.
        schedule: The result of `calibrate`.
        prompts: Prompts that the calibration has not seen.
        sampling: As in `calibrate`.
        align: As in `calibrate`.
        reward_prompt: As in `calibrate`.
        num_answers: Answers per prompt.
        seed: Seed of the answers; different from the pilot's.

    Raises:
        ConfigError: `prompts` is empty, or not a list of prompts.
    """
    prompts = checked_prompts("verify", prompts)
    sampling = (engine.sampling if sampling is None else sampling).replace(seed=seed, n=num_answers)
    base = engine.config.align if align is None else align
    if base.on_exhausted == "raise":  # the answers are the same, and must be counted
        base = base.replace(on_exhausted="stop")
    results = engine.generate(
        prompts,
        sampling=sampling,
        align=base.replace(schedule=schedule),
        reward_prompt=reward_prompt,
    )
    rewards = [result.reward for result in results if result.reward is not None]
    return Verification(
        predicted=schedule.predicted,
        observed=observed_effort(results),
        num_prompts=len(prompts),
        mean_reward=sum(rewards) / len(rewards) if rewards else float("nan"),
    )
