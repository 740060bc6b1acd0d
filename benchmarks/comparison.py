"""Compare arms on the same prompts: Best-of-N in expectation, wins, intervals over prompts.

Answers to one prompt are correlated, so everything is first averaged within a prompt, and prompts
are resampled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import comb

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

NUM_RESAMPLES = 4000


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
        raise ValueError(f"n={n} is not allowed; 1 to {total}, the samples of each prompt")
    order = np.argsort(guide, axis=1, kind="stable")
    weights = np.array([comb(rank, n - 1) / comb(total, n) for rank in range(total)])
    return np.asarray(np.take_along_axis(value, order, 1) @ weights)


def at_equal_tokens(curve: Floats, times: float) -> float:
    """Return the value of Best-of-N at the tokens of `times` answers, linear between two N.

    Args:
        curve: Mean value of Best-of-1, 2, ...: `(N,)`. Beyond its ends the value is that of the
            end, which would favour the arm that spends more; pass a curve that is long enough.
        times: Drafted tokens over the tokens of one answer.
    """
    return float(np.interp(times, np.arange(1, len(curve) + 1), curve))


def win_rate(ours: Floats, theirs: Floats) -> Floats:
    """Return each prompt's share of pairs in which ours is higher; a tie is half a win.

    Args:
        ours: `(prompts, answers)`.
        theirs: `(prompts, samples)`.
    """
    left, right = ours[:, :, None], theirs[:, None, :]
    return np.asarray(((left > right) + 0.5 * (left == right)).mean((1, 2)))


def over_prompts(
    figure: Callable[[NDArray[np.int64]], float], num_prompts: int, *, seed: int = 0
) -> list[float]:
    """Return a figure and the ends of its 95% interval: a bootstrap over prompts.

    Args:
        figure: Computes the figure from indices of prompts; an index may occur more than once.
        num_prompts: Number of prompts.
        seed: Seed of the resampling; equal seeds draw equal prompts.
    """
    generator = np.random.default_rng(seed)
    picks = generator.integers(num_prompts, size=(NUM_RESAMPLES, num_prompts))
    low, high = np.percentile([figure(pick) for pick in picks], (2.5, 97.5))
    return [figure(np.arange(num_prompts)), float(low), float(high)]


def distinct_2(texts: Sequence[str]) -> float:
    """Return the share of distinct pairs of neighbouring words, over all texts."""
    pairs = [pair for text in texts for pair in _pairs(text)]
    return len(set(pairs)) / len(pairs) if pairs else float("nan")


def distinct_2_within(texts: Sequence[str]) -> float:
    """Return the mean of that share over single texts; it is low if answers repeat themselves."""
    values = [distinct_2([text]) for text in texts]
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def _pairs(text: str) -> list[tuple[str, str]]:
    words = text.lower().split()
    return list(pairwise(words))
