"""Calibration: the arithmetic from rewards of drafts to thresholds and predictions."""

from __future__ import annotations

import numpy as np
import pytest

from stars_engine.calibration import over_prompts
from stars_engine.calibration.draws import DrawDistribution, PooledDraws, draws_of
from stars_engine.calibration.effort import effort_of, predict
from stars_engine.calibration.fit import Fitter, StageDrafts, Target, regress


def test_regression_finds_the_line_or_reports_that_there_is_none() -> None:
    x = np.array([0.0, 1.0, 2.0, 3.0])
    y = np.stack([2 + 0.5 * x, 2 + 0.5 * x + 1e-3], axis=1)
    intercept, slope = regress(x, y)
    assert (intercept, slope) == (pytest.approx(2.0005), pytest.approx(0.5))
    assert regress(np.full(4, 1.0), y)[1] == 0  # prefixes do not differ
    assert regress(np.array([0, 1, np.nan, 3]), y)[1] == 0  # one is not known
    y[0, 0] = -np.inf  # may not be accepted: not a point of the line
    assert regress(x, y) == (pytest.approx(2.0005, abs=1e-3), pytest.approx(0.5, abs=1e-3))


def test_numbers_of_draws_follow_a_beta_distribution_over_prefixes() -> None:
    """Against sums over a fine grid of the density, and in both limits."""
    a, b = 0.9, 2.1
    p = (np.arange(200_000) + 0.5) / 200_000
    density = p ** (a - 1) * (1 - p) ** (b - 1)
    density /= density.sum()
    draws = DrawDistribution(acceptance=a / (a + b), shared=1 / (a + b + 1))
    for limit in (1, 2, 7, 20):
        assert draws.forced(limit) == pytest.approx(float(density @ (1 - p) ** limit), abs=1e-4)
        attempts = float(density @ ((1 - (1 - p) ** limit) / p))
        assert draws.attempts(limit) == pytest.approx(attempts, abs=1e-3)
    alike = DrawDistribution(acceptance=0.3, shared=0.0)
    assert alike.attempts(20) == pytest.approx((1 - 0.7**20) / 0.3)
    assert alike.forced(3) == pytest.approx(0.343)
    each_its_own = DrawDistribution(acceptance=0.3, shared=1.0)  # a prefix accepts all or nothing
    assert each_its_own.forced(20) == pytest.approx(0.7)
    assert each_its_own.attempts(20) == pytest.approx(0.3 + 0.7 * 20)
    assert DrawDistribution(acceptance=0.0, shared=0.0).attempts(20) == 20


def test_the_share_between_prefixes_is_found_in_few_drafts_of_each() -> None:
    generator = np.random.default_rng(5)
    share, mean = 0.25, 0.3
    size = 1 / share - 1
    p = generator.beta(mean * size, (1 - mean) * size, size=4000)
    accepted = generator.random((4000, 4)) < p[:, None]
    [draws] = draws_of([np.where(accepted, 1.0, -1.0)], 0.0, 0.0)
    assert draws.acceptance == pytest.approx(mean, abs=0.02)
    assert draws.shared == pytest.approx(share, abs=0.03)


def test_different_stages_are_not_taken_for_different_prefixes() -> None:
    """Prefixes of a stage are alike here; a fifth and two fifths of the drafts are accepted."""
    generator = np.random.default_rng(7)
    stages = [np.where(generator.random((4000, 6)) < p, 1.0, -1.0) for p in (0.2, 0.4)]
    draws = draws_of(stages, 0.0, 0.0)
    assert [d.acceptance for d in draws] == pytest.approx([0.2, 0.4], abs=0.01)
    assert [d.shared for d in draws] == pytest.approx([0, 0], abs=0.005)  # 0.05 if thrown together
    attempts = [(1 - (1 - p) ** 20) / p for p in (0.2, 0.4)]
    pool = PooledDraws(draws, [4000, 4000], stops=False)
    assert pool.budget(20) == pytest.approx(sum(attempts) / 2, rel=0.02)
    assert pool.acceptance == pytest.approx(0.3, abs=0.01)
    lost = [(1 - p) ** 3 for p in (0.2, 0.4)]
    kept = 1 - sum(lost) / 2
    short = [(1 - (1 - p) ** 3) / p for p in (0.2, 0.4)]
    stopping = PooledDraws(draws, [4000, 4000], stops=True)
    assert stopping.budget(3) == pytest.approx(sum(short) / 2 / kept, rel=0.02)


@pytest.mark.parametrize(
    ("name", "value"), [("budget", 2.7), ("target_acceptance", 0.4), ("target_forced", 0.05)]
)
@pytest.mark.parametrize("relative_beta", [0.0, 0.3])
def test_each_target_is_met_on_the_drafts_themselves(
    name: str, value: float, relative_beta: float
) -> None:
    fitter = Fitter(Target(name, value), max_attempts=20, relative_beta=relative_beta)
    generator = np.random.default_rng(1)
    for _ in range(2):
        prefix = generator.normal(size=200)
        shared = generator.normal(scale=0.5, size=(200, 1))
        rewards = 0.8 * prefix[:, None] + shared + generator.normal(size=(200, 5))
        fitter.add(StageDrafts(prefix, rewards, np.zeros((200, 5), dtype=bool)))
    for index in range(2):
        draws = fitter.pool(index)
        got = {
            "budget": draws.budget(20),
            "target_acceptance": draws.acceptance,
            "target_forced": draws.forced(20),
        }
        assert got[name] == pytest.approx(value, rel=0.03)  # a hard test moves in steps
    assert fitter.beta == pytest.approx(relative_beta * fitter.lines[0].sigma)
    assert fitter.lines[0].slope == pytest.approx(0.8, abs=0.1)


def test_drafts_that_end_the_answer_have_their_own_line() -> None:
    generator = np.random.default_rng(2)
    prefix = generator.normal(size=100)
    rewards = prefix[:, None] + generator.normal(size=(100, 4))
    ends = np.zeros((100, 4), dtype=bool)
    ends[:, 0] = True
    rewards[:, 0] += 5  # endings sound better
    fitter = Fitter(Target("target_acceptance", 0.5), max_attempts=20, beta=0.0)
    fitter.add(StageDrafts(prefix, rewards, ends))
    [line], [terminal] = fitter.lines, fitter.terminals
    assert terminal is not None
    assert terminal.threshold(0.0) - line.threshold(0.0) == pytest.approx(5, abs=0.5)


def test_without_one_finite_reward_there_is_nothing_to_fit() -> None:
    nothing = StageDrafts(np.zeros(3), np.full((3, 2), np.nan), np.zeros((3, 2), dtype=bool))
    with pytest.raises(ValueError, match="finite"):
        Fitter(Target("budget", 2.7), max_attempts=20, beta=0.0).add(nothing)


@pytest.mark.slow
@pytest.mark.parametrize("step", [0.0, 2.0])
def test_predictions_hold_for_rewards_of_few_values(
    step: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeded worlds whose prompts differ; rewards in steps of three standard deviations, or none.

    In 150 worlds the intervals hold 89 to 100 times in 100, budget and forced alike. By the fitted
    distribution over prefixes it was 59 for the forced rate, which came out 0.07 too small.
    """
    monkeypatch.setattr(over_prompts, "NUM_RESAMPLES", 300)
    held, errors = [], []
    for seed in range(60):
        fitter = Fitter(Target("target_acceptance", 0.4), max_attempts=20, beta=0.0)
        predicted = predict(fitter, answers_in_a_world(seed, step, fitter, fit=True))
        seen = effort_of(answers_in_a_world(seed + 1000, step, fitter, fit=False))
        pairs = [(getattr(predicted, n), getattr(seen, n).value) for n in ("budget", "forced")]
        held.append([expected.holds(value) for expected, value in pairs])
        errors.append(seen.forced.value - predicted.forced.value)
    assert min(np.mean(held, axis=0)) > 0.8  # by chance once in 1000 where 0.92 is true
    assert abs(np.mean(errors)) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("values", [(-1.0, 0.0), (0.0, 1.0), (0.2, 0.9), (-3.0, -0.5)])
@pytest.mark.parametrize("share", [0.5, 0.7, 0.9, 0.99])
@pytest.mark.parametrize("slope", [0.0, 0.3, 0.9])
@pytest.mark.parametrize(
    "target",
    [Target("budget", 2.7), Target("target_acceptance", 0.3), Target("target_forced", 0.2)],
)
def test_the_best_value_is_always_accepted(
    values: tuple[float, float], share: float, slope: float, target: Target
) -> None:
    """However common it is: a threshold above it would reject every draft."""
    for seed in range(10):
        generator = np.random.default_rng(seed)
        prefixes = np.array(values)[generator.integers(2, size=96)]
        chance = np.clip(share + slope * (prefixes == values[1]) - slope / 2, 0, 1)
        good = generator.random((96, 7)) < chance[:, None]
        rewards = np.where(good, values[1], values[0])
        lines = []
        for scale, shift in ((1.0, 0.0), (100.0, 50.0)):
            fitter = Fitter(target, max_attempts=20, beta=0.0)
            no_ends = np.zeros((96, 7), dtype=bool)
            fitter.add(StageDrafts(prefixes * scale + shift, rewards * scale + shift, no_ends))
            [line] = fitter.lines
            lines.append(line)
            for prefix in set(prefixes.tolist()):
                assert values[1] * scale + shift > line.threshold(prefix * scale + shift)
        accepted = [
            rewards * scale + shift
            >= np.array([line.threshold(prefix * scale + shift) for prefix in prefixes])[:, None]
            for line, (scale, shift) in zip(lines, ((1.0, 0.0), (100.0, 50.0)), strict=True)
        ]
        assert (accepted[0] == accepted[1]).all()


def answers_in_a_world(seed: int, step: float, fitter: Fitter, *, fit: bool) -> np.ndarray:
    """Return counts of answers whose rewards are rounded random walks, harder for some prompts."""
    generator, count = np.random.default_rng(seed), 96
    state = generator.normal(scale=0.8, size=count)
    scale = 0.7 * np.exp(generator.normal(scale=0.4, size=count))

    def seen(values: np.ndarray) -> np.ndarray:
        return np.round(values / step) * step if step else values

    prefix, counts = seen(state), np.zeros((count, 8))
    counts[:, 7] = 1
    for stage in range(4):
        states = 0.8 * state[:, None] + scale[:, None] * generator.normal(size=(count, 20))
        rewards = seen(states)
        if fit:
            fitter.add(StageDrafts(prefix, rewards[:, :7], np.zeros((count, 7), dtype=bool)))
        line = fitter.lines[stage]
        taus = np.array([line.threshold(reward) for reward in prefix])
        accepted = rewards >= taus[:, None]
        found = accepted.any(1)
        kept = np.where(found, accepted.argmax(1), rewards.argmax(1))
        drawn = np.where(found, kept + 1, 20)
        ones = np.ones(count)
        counts[:, :6] += np.stack([accepted[:, 0], ones, drawn, ones, ~found, ones], axis=1)
        state, prefix = states[np.arange(count), kept], rewards[np.arange(count), kept]
    return counts
