"""The acceptance test of one candidate. Pure: the uniform is passed in."""

from __future__ import annotations

import math


def acceptance_prob(reward: float, threshold: float, beta: float) -> float:
    """Return a = min(1, exp((r - tau) / beta)), STARS (arXiv 2511.03827).

    Args:
        reward: r, finite.
        threshold: tau; -inf accepts everything, +inf nothing.
        beta: Acceptance softness >= 0, in reward units; 0 is the hard test r >= tau, inf accepts
            everything under a threshold below +inf.

    Returns:
        A probability in [0, 1].
    """
    assert math.isfinite(reward), "candidates without a finite reward are never put to the test"
    if reward >= threshold:
        return 1.0
    if beta == 0 or threshold == math.inf:
        return 0.0
    if beta == math.inf:
        return 1.0  # also where r - tau overflows, and -inf / inf is nan
    return math.exp((reward - threshold) / beta)


def accepts(uniform: float, probability: float) -> bool:
    """Test a uniform draw from [0, 1): probability 1 always accepts, 0 never does."""
    return uniform < probability
