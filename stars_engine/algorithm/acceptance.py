"""The acceptance test of one candidate: a pure function of its arguments."""

from __future__ import annotations

import math


def acceptance_prob(reward: float, threshold: float, beta: float) -> float:
    """Return a = min(1, exp((r - tau) / beta)), STARS (arXiv 2511.03827).

    Args:
        reward: r, finite.
        threshold: tau; -inf accepts everything, +inf rejects everything.
        beta: Acceptance softness >= 0, in reward units. 0 is the hard test r >= tau; inf accepts
            everything under a threshold below +inf.

    Returns:
        A probability in [0, 1].
    """
    assert math.isfinite(reward), "candidates without a finite reward are never tested"
    if reward >= threshold:
        return 1.0
    if beta == 0 or threshold == math.inf:
        return 0.0
    if beta == math.inf:
        return 1.0  # also when r - tau overflows: -inf / inf is nan
    return math.exp((reward - threshold) / beta)


def accepts(uniform: float, probability: float) -> bool:
    """Return whether a uniform from [0, 1) accepts; probability 1 always does, 0 never does."""
    return uniform < probability
