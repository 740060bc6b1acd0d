"""Find the offset of a threshold at which a rising function of it is 0."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from stars_engine.calibration.draws import Floats

ALIKE = 1e-6  # differences of rewards below this share of their range are rounding
_HALVINGS = 60


def crossing(rising: Callable[[float], float], residuals: Floats, beta: float) -> float:
    """Return the root of a function that rises with the offset, for a soft test."""
    low, high = float(residuals.min()), float(residuals.max())
    width = high - low
    low, high = low - width - 10 * beta, high + width + 10 * beta
    for _ in range(_HALVINGS):
        middle = low + (high - low) / 2
        if rising(middle) < 0:
            low = middle
        else:
            high = middle
    return high


def nearest_gap(rising: Callable[[float], float], residuals: Floats, sigma: float) -> float:
    """Return the offset at which a rising function is nearest to 0, for a hard test.

    The function is constant between neighboring residuals. The midpoint of a gap is returned, so
    rounding cannot move a draw across the threshold. Offsets above all residuals are excluded,
    because they would reject every draw: with few distinct values, there is nothing between
    accepting all of the best drafts and accepting none.

    Args:
        rising: The function.
        residuals: Any number of residuals; inf for drafts that are always accepted.
        sigma: Standard deviation of the finite residuals, or more; much smaller gaps are rounding.
    """
    ordered = np.unique(residuals[np.isfinite(residuals)])
    apart = np.diff(ordered) > ALIKE * sigma
    middles = (ordered[:-1] + np.diff(ordered) / 2)[apart]
    offsets = [float(ordered[0]) - sigma, *middles.tolist()]
    if np.isinf(residuals).any():
        offsets.append(float(ordered[-1]) + sigma)
    low, high = 0, len(offsets) - 1  # search for the first offset that reaches the target
    while low < high:
        middle = (low + high) // 2
        if rising(offsets[middle]) < 0:
            low = middle + 1
        else:
            high = middle
    near = offsets[max(0, low - 1) : low + 1]
    distances = [abs(rising(offset)) for offset in near]
    return float(near[distances.index(min(distances))])
