"""Fewer draws after nearly hopeless prefixes: when they are limited, and what that gives."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from stars_engine import (
    AlignParams,
    CalibratedSchedule,
    ConfigError,
    FunctionReward,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    calibrate,
)
from stars_engine.calibration.draw_limits import StuckPrefixes, fit_limit, limits_in_words
from stars_engine.calibration.effort import observed_effort
from stars_engine.calibration.fit import Fitter, StageDrafts, Target
from stars_engine.calibration.pilot_prompts import neutral_prompts
from stars_engine.schedules import DrawLimit, Line

BUDGET = Target("budget", 2.7)
NUM_STAGES, NUM_PROMPTS, NUM_DRAFTS = 5, 96, 7


class Drawn(NamedTuple):
    """What the loop does to the prefixes of a world.

    Attributes:
        budget: Mean number of draws.
        forced: Share of segments without an accepted draw.
        reward: Mean reward of what is kept.
    """

    budget: float
    forced: float
    reward: float


def stage(generator: np.random.Generator, hopeless: float) -> StageDrafts:
    """Twenty drafts per prefix, which change the reward; hardly, for the lowest prefixes."""
    prefixes = generator.normal(size=NUM_PROMPTS)
    stuck = prefixes < np.quantile(prefixes, hopeless)
    scale = np.where(stuck, 0.02, 0.6)[:, None]
    rewards = 0.9 * prefixes[:, None] + scale * generator.normal(size=(NUM_PROMPTS, 20))
    return StageDrafts(prefixes, rewards, np.zeros_like(rewards, dtype=bool))


def fitted(
    seed: int, hopeless: float, target: Target = BUDGET, *, limits: bool = True, **more: object
) -> Fitter:
    """Fit the stages of a world to the first drafts of each prefix."""
    fitter = Fitter(target, max_attempts=20, beta=0.0, limits_draws=limits, **more)
    generator = np.random.default_rng(seed)
    for _ in range(NUM_STAGES):
        drafts = stage(generator, hopeless)
        seen = drafts.rewards[:, :NUM_DRAFTS]
        fitter.add(StageDrafts(drafts.prefix_rewards, seen, np.zeros_like(seen, dtype=bool)))
    return fitter


def drawn(fitter: Fitter, seed: int, hopeless: float) -> Drawn:
    """Draw from other prefixes of the same world, under the last stage."""
    generator, line, limit = np.random.default_rng(seed), fitter.lines[-1], fitter.limits[-1]
    counts, forced, kept = [], [], []
    for _ in range(20):
        drafts = stage(generator, hopeless)
        for prefix, rewards in zip(drafts.prefix_rewards, drafts.rewards, strict=True):
            is_few = limit is not None and limit.holds_for(prefix)
            draws = rewards[: limit.max_attempts] if is_few else rewards
            accepted = np.flatnonzero(draws >= line.threshold(prefix))
            forced.append(not len(accepted))
            counts.append(len(draws) if forced[-1] else accepted[0] + 1)
            kept.append(draws.max() if forced[-1] else draws[accepted[0]])
    return Drawn(float(np.mean(counts)), float(np.mean(forced)), float(np.mean(kept)))


def test_hopeless_prefixes_are_found_and_the_others_get_their_draws() -> None:
    """Fewer draws, a higher threshold, and higher rewards."""
    limited, plain = fitted(0, 0.08), fitted(0, 0.08, limits=False)
    limit = limited.limits[-1]
    assert limit is not None
    assert (limit.max_attempts, limit.low) == (3, None)
    assert limit.high == pytest.approx(-1.4, abs=0.3)  # the lowest 8% of a normal distribution
    assert limit.share == pytest.approx(0.08, abs=0.03)
    assert limited.lines[-1].offset > plain.lines[-1].offset + 0.03
    ours, theirs = drawn(limited, 1, 0.08), drawn(plain, 1, 0.08)
    assert ours.budget < theirs.budget
    assert ours.reward > theirs.reward
    assert ours.forced < theirs.forced + 0.08


def test_the_highest_prefixes_may_be_hopeless_too() -> None:
    fitter = Fitter(BUDGET, max_attempts=20, beta=0.0, limits_draws=True)
    generator = np.random.default_rng(3)
    for _ in range(NUM_STAGES):
        found = stage(generator, 0.08)
        prefixes, rewards = (
            -found.prefix_rewards,
            found.rewards - 1.8 * found.prefix_rewards[:, None],
        )
        fitter.add(StageDrafts(prefixes, rewards[:, :NUM_DRAFTS], np.zeros((96, 7), dtype=bool)))
    limit = fitter.limits[-1]
    assert limit is not None
    assert limit.high is None
    assert limit.low == pytest.approx(1.4, abs=0.3)


def test_an_acceptance_target_keeps_its_thresholds_and_costs_less() -> None:
    target = Target("target_acceptance", 0.4)
    limited, plain = fitted(0, 0.08, target), fitted(0, 0.08, target, limits=False)
    assert limited.lines == plain.lines
    assert limited.limits[-1] is not None
    ours, theirs = drawn(limited, 1, 0.08), drawn(plain, 1, 0.08)
    assert ours.budget < 0.9 * theirs.budget
    assert ours.reward == pytest.approx(theirs.reward, abs=0.02)
    cost = limited.pool(NUM_STAGES - 1).budget(20)
    assert cost == pytest.approx(ours.budget, rel=0.2)
    assert cost < plain.pool(NUM_STAGES - 1).budget(20)


@pytest.mark.slow
@pytest.mark.parametrize("target", [BUDGET, Target("target_acceptance", 0.3)])
def test_nothing_is_limited_where_prefixes_are_alike(target: Target) -> None:
    """Not once in thirty worlds of five stages; the thresholds are those without the search."""
    for seed in range(30):
        limited = fitted(seed, 0.0, target)
        assert limited.limits == [None] * NUM_STAGES
        assert limited.draw_limits(NUM_STAGES - 1) == ()
        if seed < 3:
            assert limited.lines == fitted(seed, 0.0, target, limits=False).lines


def test_answers_that_stop_and_forced_targets_have_no_limits() -> None:
    assert fitted(0, 0.08, stops=True).limits == [None] * NUM_STAGES
    assert fitted(0, 0.08, Target("target_forced", 0.05)).limits == [None] * NUM_STAGES


def test_the_fit_does_not_depend_on_the_scale() -> None:
    lines, limits = [], []
    for scale, shift in ((1.0, 0.0), (128.0, 64.0)):
        fitter, generator = (
            Fitter(BUDGET, max_attempts=20, beta=0.0, limits_draws=True),
            np.random.default_rng(0),
        )
        for _ in range(NUM_STAGES):
            found = stage(generator, 0.08)
            prefixes, rewards = found.prefix_rewards * scale + shift, found.rewards * scale + shift
            fitter.add(StageDrafts(prefixes, rewards[:, :7], np.zeros((96, 7), dtype=bool)))
        lines.append(fitter.lines[-1].offset / scale)
        limits.append((fitter.limits[-1].high - shift) / scale)
    assert lines[0] == pytest.approx(lines[1])
    assert limits[0] == pytest.approx(limits[1])


def stuck(late: float, *, count: int = 400, share: float = 0.2) -> StuckPrefixes:
    """The lowest prefixes are stuck after three drafts, and accept a share of the later ones."""
    rewards = np.arange(count, dtype=float)
    is_stuck = rewards < share * count
    accepted = np.where(is_stuck, late, 0.7)
    return StuckPrefixes(rewards, is_stuck.astype(float), accepted, np.full(count, 4.0))


def test_only_what_surely_saves_draws_is_limited() -> None:
    settings = {"max_attempts": 20, "few": 3, "budget": 2.7}
    limit = fit_limit(stuck(0.05), **settings)
    assert limit is not None
    assert limit.high > 78.5  # all that are stuck; limits for the others save nothing more
    assert fit_limit(stuck(0.17), **settings) is None  # about half as often as 1 / 2.7
    assert fit_limit(stuck(0.0, share=0.01), **settings) is None  # four prefixes
    assert fit_limit(stuck(0.05), **{**settings, "budget": 12.0}) is None  # draws are cheap there
    found = stuck(0.05)
    unknown = found._replace(prefix_rewards=np.full(400, np.nan))
    assert fit_limit(unknown, **settings) is None
    assert fit_limit(found._replace(prefix_rewards=np.zeros(400)), **settings) is None


def test_prefixes_are_split_after_the_first_drafts() -> None:
    accepted = np.array([[0, 0, 0, 1], [0, 0.5, 1, 1], [0, 0.5, 0, 0]], dtype=float)
    found = StuckPrefixes.of(np.arange(3.0), accepted, 2)
    assert found.stuck.tolist() == [1.0, 0.5, 0.5]
    assert found.late.tolist() == [0.5, 1.0, 0.0]
    assert found.num_late.tolist() == [2.0, 2.0, 2.0]


@pytest.mark.slow
def test_sentiment_by_a_lexicon_on_short_segments(engine: StarsEngine) -> None:
    """Most segments change nothing, so some prefixes need a word of praise that hardly ever comes.

    Few segments take much of the budget. With limits, answers cost less at equal rewards.
    """
    reward = FunctionReward(function="stars_engine.evaluation.judges:vader", batched=True)
    sampling = SamplingParams(max_tokens=32)
    config = StarsConfig(
        model="stars:embedded-lm",
        reward=reward,
        align=AlignParams(num_candidates=2),
        sampling=sampling,
    )
    prompts = neutral_prompts(chat=False, seed=0)
    others = [prompt + " the" for prompt in prompts]
    costs, rewards, shares = [], [], []
    with StarsEngine(config, model=engine.model) as own:
        for limits in (False, True):
            schedule = calibrate(own, prompts, budget=2.7, segment_len=4, limit_draws=limits)
            assert (limits_in_words(schedule) is not None) == limits
            results = own.generate(
                others,
                sampling=sampling.replace(seed=1),
                align=AlignParams(schedule=schedule, num_candidates=2),
            )
            seen = observed_effort(results)
            costs.append(seen.budget.value)
            rewards.append(np.mean([result.reward for result in results]))
            extra = [
                (len(segment.attempts) - 1, segment.verdict == "forced")
                for result in results
                for segment in result.segments
            ]
            shares.append(sum(n for n, forced in extra if forced) / sum(n for n, _ in extra))
            if not limits:
                assert seen.forced.value < 0.07
    assert shares[0] > 0.4
    assert costs[1] < 0.95 * costs[0]
    assert rewards[1] > rewards[0] - 0.06


# --- the field of the schedule ---

LINE = Line(intercept=0.0, slope=0.0, offset=0.5, sigma=1.0)
PLAIN = CalibratedSchedule(stages=(LINE, LINE), segment_len=8, max_attempts=12)
LIMIT = DrawLimit(high=-0.5, max_attempts=3, share=0.044, saved=0.41)


def test_schedules_without_limits_are_written_as_before(tmp_path: object) -> None:
    assert "draw_limits" not in PLAIN.model_dump_json()
    limited = PLAIN.replace(draw_limits=(None, LIMIT))
    assert limited.content_hash() != PLAIN.content_hash()
    assert CalibratedSchedule.model_validate_json(limited.model_dump_json()) == limited
    path = tmp_path / "schedule.yaml"
    limited.to_file(path)
    assert CalibratedSchedule.from_file(path) == limited


def test_a_limit_holds_for_a_range_of_rewards() -> None:
    limited = PLAIN.replace(draw_limits=(None, LIMIT))
    assert [limited.draw_limit(1, reward) for reward in (-0.6, -0.5, -0.4)] == [3, 3, None]
    assert limited.draw_limit(0, -0.6) is None
    assert limited.draw_limit(7, -0.6) == 3  # past the last stage
    assert limited.draw_limit(1, float("nan")) is None
    assert PLAIN.draw_limit(0, -0.6) is None
    band = DrawLimit(low=0.0, high=1.0, max_attempts=2)
    assert [band.holds_for(reward) for reward in (-0.1, 0.0, 1.0, 1.1)] == [
        False,
        True,
        True,
        False,
    ]
    assert not PLAIN.needs_prompt_reward
    assert PLAIN.replace(draw_limits=(LIMIT, None)).needs_prompt_reward
    with pytest.raises(ConfigError, match="1 draw_limits for 2 stages"):
        PLAIN.replace(draw_limits=(LIMIT,))
    with pytest.raises(ConfigError, match="at least one"):
        DrawLimit(max_attempts=3)
    with pytest.raises(ConfigError, match="is above high"):
        DrawLimit(low=1.0, high=0.0, max_attempts=3)


def test_limits_in_words() -> None:
    assert limits_in_words(PLAIN) is None
    said = limits_in_words(PLAIN.replace(draw_limits=(None, LIMIT)))
    assert said is not None
    for part in ("1 of 2 segments", "at most 3 instead of 12", "up to -0.5", "4%", "41%"):
        assert part in said
