"""Statistics over prompts: Best-of-N in expectation, wins, intervals, rankings.

Answers to one prompt are correlated. So everything is first averaged within a prompt, and intervals
resample prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stars_engine.calibration.over_prompts import Floats, Indices, bootstrap
from stars_engine.errors import needs_extra
from stars_engine.schedules import Estimate


def best_of(n: int, guide: Floats, value: Floats) -> Floats:
    """Return the expected value of Best-of-n over all n-subsets, selected by the guide.

    Args:
        n: 1 to the number of samples.
        guide: Values that select the answer, `(prompts, samples)`.
        value: Values of the answers, of the same shape.

    Returns:
        `(prompts,)`.
    """
    total = guide.shape[1]
    if not 1 <= n <= total:
        raise ValueError(
            f"n={n} is not allowed; allowed: 1 to {total}, the samples of each prompt. Hint: use a "
            "smaller n"
        )
    order = np.argsort(guide, axis=1, kind="stable")
    weights = np.array([comb(rank, n - 1) / comb(total, n) for rank in range(total)])
    return np.asarray(np.take_along_axis(value, order, 1) @ weights)


def best_of_curve(guide: Floats, value: Floats) -> Floats:
    """Return the value of Best-of-1, 2, ..., for each prompt: `(prompts, samples)`."""
    return np.stack([best_of(n, guide, value) for n in range(1, guide.shape[1] + 1)], axis=1)


def at_equal_tokens(curve: Floats, times: Floats) -> Floats:
    """Return the value of Best-of-N at the tokens of `times` answers, linear between two N.

    Args:
        curve: Mean value of Best-of-1, 2, ...: `(..., N)`. Beyond its ends the value is that of the
            end, which would favour an arm that spends more; pass a curve that is long enough.
        times: Drafted tokens over the tokens of one answer: `(...)`.
    """
    last = curve.shape[-1] - 1
    place = np.clip(np.asarray(times) - 1, 0, last)
    low = np.minimum(np.floor(place).astype(int), last)
    high = np.minimum(low + 1, last)
    left = np.take_along_axis(curve, low[..., None], -1)[..., 0]
    right = np.take_along_axis(curve, high[..., None], -1)[..., 0]
    return np.asarray(left + (place - low) * (right - left))


def tokens_to_reach(curve: Floats, value: float) -> float:
    """Return the N, linear between two, at which Best-of-N reaches a value; inf if it does not."""
    above = np.flatnonzero(curve >= value)
    if not len(above):
        return float("inf")
    first = int(above[0])
    if first == 0:
        return 1.0
    step = curve[first] - curve[first - 1]
    return float(first + (value - curve[first - 1]) / step)


def independent_pairs(num_ours: int, num_theirs: int) -> NDArray[np.bool]:
    """Return which pairs of answers to one prompt are independent: `(ours, theirs)`.

    Answers of the same column share seed and sample index, and so the noise of their tokens. They
    would tie more often than two independent answers, so they are left out where others remain.
    """
    mask = np.ones((num_ours, num_theirs), dtype=bool)
    if num_theirs > 1:
        np.fill_diagonal(mask, val=False)
    return mask


def win_rate(ours: Floats, theirs: Floats, pairs: NDArray[np.bool] | None = None) -> Floats:
    """Return each prompt's share of pairs in which ours is higher; a tie is half a win.

    Args:
        ours: `(prompts, answers)`.
        theirs: `(prompts, samples)`.
        pairs: Which pairs count, `(answers, samples)`; None: all.
    """
    left, right = ours[:, :, None], theirs[:, None, :]
    wins = (left > right) + 0.5 * (left == right)
    if pairs is None:
        pairs = np.ones(wins.shape[1:], dtype=bool)
    return np.asarray(wins[:, pairs].mean(1))


def over_prompts(figure: Callable[[Indices], Any], num_prompts: int, *, seed: int = 0) -> Estimate:
    """Return a figure and its 95% interval, which is nan for fewer than two prompts.

    See `bootstrap` for the arguments.
    """
    if num_prompts < 2:
        return Estimate(value=float(figure(np.arange(num_prompts))), low=np.nan, high=np.nan)
    return bootstrap(figure, num_prompts, seed=seed)


def mean_over_prompts(values: Floats, *, seed: int = 0) -> Estimate:
    """Return the mean of one value per prompt, with its interval."""
    return over_prompts(lambda picked: values[picked].mean(-1), len(values), seed=seed)


def length_controlled_win_rate(wins: Floats, extra_tokens: Floats) -> float:
    """Return the win rate that remains at equal length.

    Like length-controlled AlpacaEval (arXiv 2404.04475): a logistic regression of wins on the
    difference of lengths, tanh((len(ours) - len(theirs)) / sigma), evaluated at a difference of 0.

    Args:
        wins: 1, 0, or 0.5 for a tie, of each pair: `(pairs,)`.
        extra_tokens: Our length minus theirs, of each pair.
    """
    with needs_extra("eval"):
        from scipy.optimize import minimize  # noqa: PLC0415
    spread = float(extra_tokens.std())
    length = np.tanh(extra_tokens / spread) if spread > 0 else np.zeros(len(wins))

    def loss(weights: Floats) -> tuple[float, Floats]:
        logits = weights[0] + weights[1] * length
        error = 1 / (1 + np.exp(-logits)) - wins
        value = np.logaddexp(0, logits) - wins * logits
        # A slight pull to 0 keeps the weights finite if one side always wins.
        gradient = np.array([error.mean(), (error * length).mean()]) + 1e-4 * weights
        return float(value.mean() + 5e-5 * weights @ weights), gradient

    found = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B")
    return float(1 / (1 + np.exp(-found.x[0])))


def ranking(opinions: Mapping[str, Floats]) -> dict[str, float]:
    """Return Bradley-Terry strengths of arms from all pairwise comparisons, on Elo's scale.

    Args:
        opinions: The judge's rewards of each arm, `(prompts, answers)`; answer `i` of an arm meets
            answer `i` of every other arm to the same prompt.

    Returns:
        Strengths with mean 0, best first: 400 points are odds of 10 to 1. An arm that never loses,
        or never wins, has no finite strength; its value is bounded by half a win against each.
    """
    with needs_extra("eval"):
        from evalica import Winner, bradley_terry  # noqa: PLC0415
    left, right, winners, weights = [], [], [], []
    for one, other in combinations(opinions, 2):
        count = min(opinions[one].shape[1], opinions[other].shape[1])
        ours, theirs = opinions[one][:, :count], opinions[other][:, :count]
        for winner, cases in (
            (Winner.X, ours > theirs),
            (Winner.Y, ours < theirs),
            (Winner.Draw, ours == theirs),
        ):
            left.append(one)
            right.append(other)
            winners.append(winner)
            # One more draw than was seen, so that strengths stay finite.
            weights.append(float(cases.sum()) + (winner == Winner.Draw))
    scores = bradley_terry(left, right, winners, weights=weights, limit=10_000).scores
    elo = {name: 400 * float(np.log10(value)) for name, value in scores.items()}
    mean = float(np.mean(list(elo.values())))
    return {name: elo[name] - mean for name in sorted(elo, key=lambda item: -elo[item])}
