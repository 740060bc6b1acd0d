"""The law where the reward of the prefix limits the draws, and the same text however it is drafted.

The limit is known before a segment's first draw, so the law of the segment is that of fewer draws.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from stars_engine import (
    AlignmentError,
    AlignParams,
    CalibratedSchedule,
    SamplingParams,
    StarsEngine,
)
from stars_engine.algorithm.noise import CounterNoise
from stars_engine.algorithm.rollout import Rollout
from stars_engine.core.offline import stars
from stars_engine.schedules import DrawLimit, Line
from stars_engine.testing import TableReward, TabularModel
from tests.support.accounts import account
from tests.support.closed_form import END, PIECES, REWARDS, Case, closed_form, next_probs
from tests.support.enumerated_laws import assert_same_law
from tests.support.rollouts import make_rollout

# RM(x, "") is 0.1, and the first segments have the rewards 0.7, -0.4, or end the answer.
LIMITS = {
    "low": (None, DrawLimit(high=0.3, max_attempts=1)),
    "high": (None, DrawLimit(low=0.3, max_attempts=2)),
    "first": (DrawLimit(high=0.1, max_attempts=2), None),
    "between": (DrawLimit(low=0.0, high=0.5, max_attempts=1), DrawLimit(high=0.0, max_attempts=2)),
    "one for all": (DrawLimit(low=-1.0, max_attempts=2),),
}


@pytest.mark.parametrize("on_exhausted", ["best", "last", "stop"])
@pytest.mark.parametrize(
    ("num_candidates", "beta"),
    [(1, 0.0), (2, 0.5), pytest.param(4, 0.5, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize(
    "limits",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in ("high", "first"))) for name in LIMITS],
)
def test_two_segments(limits: str, num_candidates: int, beta: float, on_exhausted: str) -> None:
    """With four candidates at once, the first step drafts more than the prompt's reward allows."""
    found = LIMITS[limits]
    thresholds = (0.4, 0.6)[: len(found)]
    case = Case(thresholds, beta, 3, on_exhausted, num_candidates, 2, draw_limits=found)
    assert_same_law(case, closed_form)


@pytest.mark.parametrize(
    "limits", [pytest.param("high", marks=pytest.mark.slow), "first", "between", "one for all"]
)
def test_limits_change_the_law(limits: str) -> None:
    found = LIMITS[limits]
    case = Case((0.4, 0.6)[: len(found)], 0.5, 3, "best", 1, 2, draw_limits=found)
    with pytest.raises(AssertionError):
        assert_same_law(case, lambda _: closed_form(replace(case, draw_limits=())))


@pytest.mark.parametrize("num_candidates", [1, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("slope", [0.5, -1.0])
def test_thresholds_and_limits_that_follow_the_prefix(slope: float, num_candidates: int) -> None:
    found = LIMITS["between"]
    case = Case((1.0, 0.4), 0.4, 3, "best", num_candidates, 2, slope=slope, draw_limits=found)
    assert_same_law(case, closed_form)


@pytest.mark.slow
@pytest.mark.parametrize("on_exhausted", ["best", "last"])
@pytest.mark.parametrize("num_candidates", [1, 2, 4])
def test_three_segments(num_candidates: int, on_exhausted: str) -> None:
    found = (None, *LIMITS["low"])
    case = Case((0.3, 0.5, 0.8), 0.4, 3, on_exhausted, num_candidates, 3, draw_limits=found)
    assert_same_law(case, closed_form)


def test_a_limit_above_that_of_the_request_changes_nothing() -> None:
    case = Case((0.4,), 0.5, 2, "best", 2, 2, draw_limits=(DrawLimit(low=-9.0, max_attempts=5),))
    assert_same_law(case, lambda _: closed_form(replace(case, draw_limits=())))


def schedule(limit: DrawLimit, value: float = 0.5) -> CalibratedSchedule:
    line = Line(intercept=value, slope=0, offset=0, sigma=1)
    return CalibratedSchedule(stages=(line,), draw_limits=(limit,), segment_len=1, max_attempts=6)


def run(num_candidates: int, reward: object, **settings: object) -> Rollout:
    align = AlignParams(
        schedule=schedule(DrawLimit(high=0.3, max_attempts=2), 5.0),
        num_candidates=num_candidates,
        **settings,
    )
    sampling = SamplingParams(max_tokens=1, temperature=1.0, top_k=None)
    model = TabularModel(PIECES, next_probs, end_id=END)
    rollout = make_rollout(
        align=align, sampling=sampling, noise=CounterNoise(seed=4, prompt_ids=(1,), sample_index=0)
    )
    for _ in stars([rollout], model, reward):
        pass
    return rollout


@pytest.mark.parametrize("num_candidates", [1, 4])
def test_draws_beyond_the_limit_are_surplus(num_candidates: int) -> None:
    """Neither they nor their rewards count, not even failed ones."""

    class FailsLater(TableReward):
        num_scored = 0

        def score(self, inputs: list) -> list:
            found = super().score(inputs)
            first = self.num_scored
            self.num_scored += len(found)
            # The prompt, two draws, and then draws that are not used.
            return [v if first + i < 3 else float("nan") for i, v in enumerate(found)]

    rollout = run(num_candidates, FailsLater(dict(REWARDS), default=0.0))
    result = rollout.result()
    assert [segment.verdict for segment in result.segments] == ["forced"]
    assert result.usage.num_attempts == result.usage.num_drafted_tokens == 2
    assert result.usage.num_reward_calls == 3
    assert result.usage.num_ineligible == 0
    assert result.usage.num_surplus_tokens == max(0, num_candidates - 2)


def test_the_error_names_the_number_of_draws() -> None:
    rollout = run(1, TableReward(dict(REWARDS), default=0.0), on_exhausted="raise")
    assert isinstance(rollout.error, AlignmentError)
    assert "accepted in 2 attempts" in str(rollout.error)


def test_temperature_0_draws_once() -> None:
    align = AlignParams(schedule=schedule(DrawLimit(low=-9, max_attempts=3)), num_candidates=1)
    greedy = SamplingParams(temperature=0, max_tokens=4)
    assert make_rollout(align=align, sampling=greedy).max_attempts == 1


# --- the same text on real models ---

PROMPTS = ["This movie", "I", "The acting in this film was", "Bad", "Once upon a time", "My wife"]
SEEDED = SamplingParams(seed=5, max_tokens=40)


def limited(engine: StarsEngine) -> AlignParams:
    """A quarter or so of the prefixes get two draws, for a test that a third of the drafts pass."""
    lines = [Line(intercept=0.4, slope=0.9, offset=0.3, sigma=0.6)] * 2
    limits = (DrawLimit(low=0.2, max_attempts=3), DrawLimit(high=0.8, max_attempts=2))
    schedule = CalibratedSchedule(
        stages=tuple(lines), draw_limits=limits, segment_len=8, beta=0.1, max_attempts=8
    )
    return AlignParams(schedule=schedule, num_candidates=1)


@pytest.mark.slow
def test_same_text_however_it_is_drafted(engine: StarsEngine) -> None:
    align = limited(engine)
    one = engine.generate(PROMPTS, sampling=SEEDED, align=align)
    drawn = [len(s.attempts) for r in one for s in r.segments if s.verdict == "forced"]
    assert {2, 8} <= set(drawn)  # limited and unlimited prefixes
    for candidates in (2, 4, 8, "auto"):
        some = align.replace(num_candidates=candidates)
        several = engine.generate(PROMPTS, sampling=SEEDED, align=some)
        assert [account(r) for r in several] == [account(r) for r in one]
    alone = [engine.generate(prompt, sampling=SEEDED, align=align)[0] for prompt in PROMPTS]
    assert [account(r) for r in alone] == [account(r) for r in one]
    without = align.replace(schedule=align.schedule.replace(draw_limits=()))
    free = engine.generate(PROMPTS, sampling=SEEDED, align=without)
    assert [r.token_ids for r in free] != [r.token_ids for r in one]
