"""Figures of benchmarks against enumerations and closed forms."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from benchmarks.comparison import (
    at_equal_tokens,
    best_of,
    distinct_2,
    distinct_2_within,
    over_prompts,
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


def test_best_of_more_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="n=3 is not allowed; 1 to 2"):
        best_of(3, np.zeros((1, 2)), np.zeros((1, 2)))


def test_equal_token_budgets_lie_between_whole_numbers() -> None:
    curve = np.array([0.0, 1.0, 3.0])
    assert [at_equal_tokens(curve, times) for times in (1, 1.5, 2.25, 3, 9)] == [0, 0.5, 1.5, 3, 3]


def test_wins_count_every_pair_and_ties_half() -> None:
    ours = np.array([[1.0, 2.0], [0.0, 0.0]])
    theirs = np.array([[0.0, 1.0, 3.0], [0.0, 0.0, -1.0]])
    assert win_rate(ours, theirs).tolist() == pytest.approx([(1 + 0.5 + 2) / 6, (2 + 0.5 * 4) / 6])


def test_intervals_are_of_prompts_not_of_answers() -> None:
    rng = np.random.default_rng(1)
    num_prompts, num_answers = 100, 8
    means = rng.normal(size=num_prompts)
    answers = means[:, None] + 0.01 * rng.normal(size=(num_prompts, num_answers))
    by_prompt = answers.mean(1)
    value, low, high = over_prompts(lambda picked: float(by_prompt[picked].mean()), num_prompts)
    assert value == pytest.approx(answers.mean())
    # Answers are all but equal within a prompt, so there are 100 observations and not 800.
    error = by_prompt.std() / np.sqrt(num_prompts)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.06)
    again = over_prompts(lambda picked: float(by_prompt[picked].mean()), num_prompts)
    assert again == [value, low, high]


def test_distinct_pairs() -> None:
    assert distinct_2(["a b c", "A b d"]) == 3 / 4
    assert distinct_2_within(["a b c", "a b a b a"]) == (1 + 2 / 4) / 2
    assert np.isnan(distinct_2(["a", ""]))
    assert distinct_2_within(["a b", "a"]) == 1
