"""Statistics of evaluations against enumerations, naive formulas and closed forms."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from stars_engine.evaluation.statistics import (
    at_equal_tokens,
    best_of,
    best_of_curve,
    independent_pairs,
    length_controlled_win_rate,
    mean_over_prompts,
    over_prompts,
    ranking,
    tokens_to_reach,
    win_rate,
)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_best_of_is_the_mean_over_all_subsets(n: int) -> None:
    rng = np.random.default_rng(0)
    guide, value = rng.normal(size=(2, 5, 6))
    expected = [
        np.mean([values[max(chosen, key=lambda i: own[i])] for chosen in combinations(range(6), n)])
        for own, values in zip(guide, value, strict=True)
    ]
    np.testing.assert_allclose(best_of(n, guide, value), expected)
    np.testing.assert_allclose(best_of_curve(guide, value)[:, n - 1], expected)


def test_best_of_more_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match=r"n=3 is not allowed; allowed: 1 to 2.*Hint"):
        best_of(3, np.zeros((1, 2)), np.zeros((1, 2)))


def test_equal_tokens_lie_between_whole_numbers() -> None:
    curve = np.array([0.0, 1.0, 3.0])
    found = [float(at_equal_tokens(curve, np.array(times))) for times in (1, 1.5, 2.25, 3, 9)]
    assert found == [0, 0.5, 1.5, 3, 3]
    many = at_equal_tokens(np.stack([curve, 2 * curve]), np.array([1.5, 2.25]))
    assert many.tolist() == [0.5, 3.0]


def test_tokens_to_reach_inverts_the_curve() -> None:
    curve = np.array([0.0, 1.0, 3.0])
    assert [tokens_to_reach(curve, value) for value in (-1, 0.5, 2, 3)] == [1, 1.5, 2.5, 3]
    assert tokens_to_reach(curve, 3.1) == math.inf


def test_wins_count_every_pair_and_ties_half() -> None:
    ours = np.array([[1.0, 2.0], [0.0, 0.0]])
    theirs = np.array([[0.0, 1.0, 3.0], [0.0, 0.0, -1.0]])
    assert win_rate(ours, theirs).tolist() == pytest.approx([(1 + 0.5 + 2) / 6, (2 + 0.5 * 4) / 6])


def test_pairs_with_the_same_noise_do_not_count() -> None:
    ours, theirs = np.array([[1.0, 2.0]]), np.array([[1.0, 1.5]])
    pairs = independent_pairs(2, 2)
    assert pairs.tolist() == [[False, True], [True, False]]
    assert win_rate(ours, theirs, pairs).tolist() == [0.5]  # 1 < 1.5, 2 > 1
    assert independent_pairs(2, 1).all()  # a single answer is all there is


def test_intervals_are_of_prompts_not_of_answers() -> None:
    rng = np.random.default_rng(1)
    num_prompts, num_answers = 100, 8
    means = rng.normal(size=num_prompts)
    answers = means[:, None] + 0.01 * rng.normal(size=(num_prompts, num_answers))
    by_prompt = answers.mean(1)
    found = mean_over_prompts(by_prompt)
    assert found.value == pytest.approx(answers.mean())
    # Answers are all but equal within a prompt, so there are 100 observations and not 800.
    error = by_prompt.std() / np.sqrt(num_prompts)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.08)
    assert mean_over_prompts(by_prompt) == found


def test_arms_stay_paired() -> None:
    """The difference of two arms that differ by a constant has an interval of no width."""
    values = np.random.default_rng(2).normal(size=50)
    other = values + 1
    found = over_prompts(lambda picked: (other[picked] - values[picked]).mean(-1), 50)
    assert (found.low, found.high) == pytest.approx((1, 1))
    ratio = over_prompts(lambda picked: other[picked].sum(-1) / other[picked].sum(-1), 50)
    assert (ratio.value, ratio.low, ratio.high) == (1, 1, 1)


def test_one_prompt_has_no_interval() -> None:
    found = mean_over_prompts(np.array([2.0]))
    assert found.value == 2
    assert math.isnan(found.low)


def test_the_win_rate_at_equal_length_is_that_of_pairs_of_equal_length() -> None:
    """Wins that come from length alone disappear; those that do not depend on it stay."""
    extra = np.tile([-20.0, 0.0, 20.0], 200)
    by_length = np.tile([0.0, 0.5, 1.0], 200)
    assert length_controlled_win_rate(by_length, extra) == pytest.approx(0.5, abs=1e-3)
    assert by_length.mean() == 0.5
    longer = np.tile([0.0, 20.0, 20.0], 200)
    wins = np.tile([0.5, 1.0, 0.9], 200)  # longer answers win
    assert wins.mean() == pytest.approx(0.8)
    assert length_controlled_win_rate(wins, longer) == pytest.approx(0.5, abs=0.02)
    equal = length_controlled_win_rate(np.tile([1.0, 1.0, 0.5], 200), np.zeros(600))
    assert equal == pytest.approx(5 / 6, abs=1e-3)


def test_rankings_recover_the_odds_of_wins() -> None:
    """One arm beats the other three times in four: odds of 3, 400 * log10(3) points."""
    rng = np.random.default_rng(3)
    size = (4000, 1)
    strong, weak = (rng.random(size) < 0.75).astype(float), np.full(size, 0.5)
    found = ranking({"weak": weak, "strong": strong})
    assert list(found) == ["strong", "weak"]
    odds = strong.mean() / (1 - strong.mean())
    assert found["strong"] - found["weak"] == pytest.approx(400 * math.log10(odds), abs=2)
    assert sum(found.values()) == pytest.approx(0)


def test_an_arm_that_always_wins_has_a_finite_strength() -> None:
    ones = np.ones((20, 1))
    found = ranking({"best": 2 * ones, "middle": ones, "worst": 0 * ones})
    assert list(found) == ["best", "middle", "worst"]
    assert all(map(math.isfinite, found.values()))
