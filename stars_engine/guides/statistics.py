"""Statistics of values and scores of answers."""

from __future__ import annotations

import numpy as np

from stars_engine.calibration.over_prompts import Floats, Indices, centred_within


def within_correlation(values: Floats, scores: Floats, prompts: Indices) -> float:
    """Return the correlation among answers to one prompt, pooled over prompts; nan if undefined."""
    pair = np.stack([centred_within(each, prompts) for each in (values, scores)], axis=1)
    norms = np.sqrt((pair**2).sum(0))
    if not (norms > 1e-12 * max(1.0, np.abs(values).max(), np.abs(scores).max())).all():
        return float("nan")
    return float((pair[:, 0] * pair[:, 1]).sum() / norms.prod())


def line_of(values: Floats, scores: Floats) -> tuple[float, float]:
    """Return slope and intercept of scores on values; the slope is never negative."""
    variance = float(values.var())
    slope = 0.0
    if variance > 0:
        slope = max(0.0, float(((values - values.mean()) * (scores - scores.mean())).mean()))
        slope /= variance
    return slope, float(scores.mean() - slope * values.mean())
