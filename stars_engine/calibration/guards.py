"""Guards: rewards of two or three values, which need no calibration, only a rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from stars_engine.calibration.fit import StageDrafts
from stars_engine.config import AlignParams
from stars_engine.schedules import CalibratedSchedule, Line

_MOST_VALUES = 3
_LEAST_DRAFTS = 32  # fewer drafts of a finer reward might share their values by chance


def guard_values(drafts: StageDrafts) -> list[float] | None:
    """Return the values of a reward that takes at most three in a stage, lowest first.

    Returns:
        The values; None if there are more, or too few drafts to tell.
    """
    found = drafts.rewards[np.isfinite(drafts.rewards)]
    values = np.unique(found)
    if len(found) < _LEAST_DRAFTS or len(values) > _MOST_VALUES:
        return None
    return [float(value) for value in values]


def guard_schedule(
    values: Sequence[float], align: AlignParams, made_for: dict[str, Any]
) -> CalibratedSchedule:
    """Return thresholds that accept the highest value alone.

    Args:
        values: All values that the reward takes, lowest first.
        align: The acceptance settings.
        made_for: What the thresholds depend on.
    """
    top = values[-1]
    below = values[-2] if len(values) > 1 else top - max(1.0, abs(top))
    line = Line(intercept=below + (top - below) / 2, slope=0, offset=0, sigma=0)
    return CalibratedSchedule(
        stages=(line,),
        segment_len=align.segment_len,
        beta=0.0,
        max_attempts=align.max_attempts,
        made_for={**made_for, "guard": list(values)},
    )


def in_words(values: Sequence[float]) -> str:
    """Return the values of a guard as text."""
    return ", ".join(f"{value:g}" for value in values)
