"""Statistics over prompts: answers to one prompt are correlated, so intervals resample prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stars_engine.schedules import Estimate

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

NUM_RESAMPLES = 2000
_BATCH = 200  # resamples computed at once


def bootstrap(
    figure: Callable[[Indices], Any],
    num_prompts: int,
    *,
    seed: int = 0,
    num_resamples: int | None = None,
) -> Estimate:
    """Return a figure and its 95% interval: a paired bootstrap that resamples prompts.

    Args:
        figure: Computes the figure from indices of prompts, `(..., prompts)` to `(...)`; an index
            may occur more than once. All arrays are indexed alike, so that arms stay paired.
            Resamples for which the figure is not finite are left out.
        num_prompts: Number of prompts.
        seed: Seed of the resampling; equal seeds draw equal prompts.
        num_resamples: Number of resamples; by default `NUM_RESAMPLES`.
    """
    size = (num_resamples or NUM_RESAMPLES, num_prompts)
    picks = np.random.default_rng(seed).integers(num_prompts, size=size)
    batches = [figure(picks[at : at + _BATCH]) for at in range(0, len(picks), _BATCH)]
    draws = np.concatenate(batches, dtype=float)
    draws = draws[np.isfinite(draws)]
    low, high = np.percentile(draws, (2.5, 97.5)) if len(draws) else (np.nan, np.nan)
    return Estimate(value=float(figure(np.arange(num_prompts))), low=float(low), high=float(high))


def of_each(figure: Callable[[Indices], float]) -> Callable[[Indices], Any]:
    """Return a figure of `(..., prompts)` indices that computes one resample after the other."""
    return lambda picked: np.apply_along_axis(figure, -1, picked)


def rows_of(prompts: Indices, picked: Indices) -> tuple[Indices, Indices]:
    """Return the rows of picked prompts, and a name for each; a prompt picked twice has two.

    Args:
        prompts: The prompt of each row, `(rows,)`.
        picked: Prompts, `(picked,)`.
    """
    parts = [np.flatnonzero(prompts == prompt) for prompt in picked]
    names = np.repeat(np.arange(len(picked)), [len(part) for part in parts])
    return np.concatenate(parts), names


def centred_within(values: Floats, prompts: Indices) -> Floats:
    """Subtract from each value the mean of the values of its prompt."""
    _, group = np.unique(prompts, return_inverse=True)
    means = np.bincount(group, weights=values) / np.bincount(group)
    return np.asarray(values - means[group])
