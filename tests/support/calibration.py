"""Prompts and settings for calibrations, and a comparison of two schedules."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from stars_engine import CalibratedSchedule, SamplingParams
from stars_engine.rewards.base import RewardModel
from stars_engine.types import RewardInput, Score

OPENINGS = [
    f"{who} {what}"
    for who in ("The film", "My brother", "This actor", "One scene", "The music")
    for what in ("was", "tried to", "never quite", "looked")
]
# No answer ends before its last token, so that all stages have all prefixes.
SAMPLING = SamplingParams(max_tokens=24, min_tokens=24)
QUICK = {"segment_len": 8, "sampling": SAMPLING, "num_drafts": 6}


class Scaled:
    """A reward model seen through another scale."""

    def __init__(self, inner: RewardModel, factor: float, shift: float = 0.0) -> None:
        self._inner, self._factor, self._shift = inner, factor, shift
        self.reads_ids = True

    def score(self, inputs: Sequence[RewardInput]) -> list[Score]:
        scores = self._inner.score(inputs)
        values = [s.value if isinstance(s, Score) else s for s in scores]
        return [Score(value * self._factor + self._shift) for value in values]


def assert_same(a: CalibratedSchedule, b: CalibratedSchedule) -> None:
    """Equal up to the rounding of float32.

    Rounding errors depend on the batch, and on how a prefix was split when it was read.
    """
    assert len(a.stages) == len(b.stages)
    for ours, theirs in zip(a.stages, b.stages, strict=True):
        assert ours.model_dump() == pytest.approx(theirs.model_dump(), abs=1e-4)
    assert a.made_for == b.made_for
