"""The pilot where a step has no room for all drafts of a prefix, or where a draft fails."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from stars_engine import (
    CalibratedSchedule,
    GenerationError,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    calibrate,
)
from stars_engine.algorithm.candidate import Draft
from stars_engine.backends.base import DraftRequest, PromptedModel
from stars_engine.calibration.fit import Fitter, Target
from stars_engine.calibration.pilot import StageDecoding
from stars_engine.config import EngineParams
from stars_engine.core.batch_selection import BatchSelector
from tests.support.calibration import OPENINGS, QUICK, SAMPLING, assert_same


class Counting:
    """A language model that tells how many rows it drafted at once at most."""

    def __init__(self, inner: PromptedModel) -> None:
        self._inner, self.most_rows = inner, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def draft(self, requests: Sequence[DraftRequest]) -> Sequence[Draft | GenerationError]:
        self.most_rows = max(self.most_rows, len(requests))
        return self._inner.draft(requests)


class FailsFourth(Counting):
    def draft(self, requests: Sequence[DraftRequest]) -> list[Draft | GenerationError]:
        found: list[Draft | GenerationError] = [*super().draft(requests)]
        return [GenerationError("no draft") if at % 6 == 3 else one for at, one in enumerate(found)]


@pytest.mark.slow
@pytest.mark.parametrize("max_rows", [16, 4])
def test_limits_of_the_engine_and_other_callers_change_nothing(
    engine: StarsEngine, schedule: CalibratedSchedule, max_rows: int
) -> None:
    """Four rows are fewer than the six drafts of a prefix, which then take two steps."""
    config = StarsConfig(align=engine.config.align, engine=EngineParams(max_rows=max_rows))
    model = Counting(engine.model)
    with StarsEngine(config, model=model, reward=engine.reward) as small:
        busy = small.submit(["x", "y"], sampling=SamplingParams(max_tokens=96, seed=0))
        found = calibrate(small, OPENINGS, target_acceptance=0.4, seed=4, **QUICK)
        assert_same(found, schedule)
        busy.result()
    assert 4 <= model.most_rows <= max_rows


@pytest.mark.slow
def test_steps_that_are_kept_short_change_nothing(
    engine: StarsEngine, schedule: CalibratedSchedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside other callers, a step may have fewer rows than a prefix has drafts."""
    monkeypatch.setattr(BatchSelector, "_short_step", lambda self, ready: 4)
    config = StarsConfig(align=engine.config.align)
    with StarsEngine(config, model=engine.model, reward=engine.reward) as own:
        assert_same(calibrate(own, OPENINGS, target_acceptance=0.4, seed=4, **QUICK), schedule)


def test_a_prefix_with_a_failed_draft_gets_no_more(engine: StarsEngine) -> None:
    fitter = Fitter(Target("budget", 2.0), max_attempts=6, beta=0.0)
    pilot = StageDecoding(fitter, num_drafts=6)
    config = StarsConfig(align=engine.config.align)
    with StarsEngine(config, model=FailsFourth(engine.model), reward=engine.reward) as own:
        [result] = own.decode("A film", pilot, sampling=SAMPLING)
    assert result.finish_reason == "length"
    assert len(pilot.collected[0].candidates) == len(pilot.collected[0].outcomes) == 3
