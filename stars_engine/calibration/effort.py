"""The cost of aligned text: predicted by a pilot, and observed on other prompts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stars_engine.calibration.draws import PooledDraws
from stars_engine.calibration.fit import OFFSETS, Fitter
from stars_engine.calibration.over_prompts import Indices, bootstrap
from stars_engine.schedules import CurvePoint, Effort, Estimate
from stars_engine.types import StarsResult


def observed_effort(results: Sequence[StarsResult], *, seed: int = 0) -> Effort:
    """Return the cost of answers, with intervals by resampling prompts."""
    return effort_of(_counts(results), seed=seed)


def effort_of(counts: NDArray[np.float64], *, seed: int = 0) -> Effort:
    """Return the cost from `(prompts, 8)` counts; see `_counts`."""
    pairs = [_ratio(counts[:, at], counts[:, at + 1], seed) for at in (0, 2, 4, 6)]
    acceptance, budget, forced, stopped = pairs
    return Effort(acceptance=acceptance, budget=budget, forced=forced, stopped=stopped)


def pilot_effort(fitter: Fitter, results: Sequence[StarsResult]) -> Effort:
    """Predict the effort on the same number of other prompts."""
    return predict(fitter, _counts(results))


def predict(fitter: Fitter, counts: NDArray[np.float64]) -> Effort:
    """Predict the effort on the same number of other prompts, from the pilot's counts.

    The acceptance is that of all drafts. Attempts are taken from the pilot's answers, not from the
    distribution that the fit assumes over prefixes: if the reward has few distinct values, some
    prefixes are nearly hopeless, and the fit expects too few attempts. The intervals cover the
    sampling error of the pilot's prompts and of the other prompts.

    Args:
        fitter: The fitted stages.
        counts: `(prompts, 8)`, see `_counts`.
    """
    observed = effort_of(counts)
    assert observed.stopped is not None
    forced = stopped = Estimate(value=0.0, low=0.0, high=0.0)
    if fitter.stops:
        num_answers = int(counts[:, 7].sum())
        stopped = _for_new_prompts(_at_least_binomial(observed.stopped, num_answers), top=1.0)
    else:
        num_segments = int(counts[:, 5].sum())
        forced = _for_new_prompts(_at_least_binomial(observed.forced, num_segments), top=1.0)
    acceptance = _mean_draws(fitter, None).acceptance
    return Effort(
        acceptance=_for_new_prompts(observed.acceptance, value=acceptance, top=1.0),
        budget=_for_new_prompts(observed.budget),
        forced=forced,
        stopped=stopped,
    )


def effort_curve(fitter: Fitter) -> tuple[CurvePoint, ...]:
    """Return the cost of other offsets on the pilot's prefixes."""
    return tuple(_mean_draws(fitter, offset) for offset in OFFSETS)


def _mean_draws(fitter: Fitter, offset_sigmas: float | None) -> CurvePoint:
    """Average over stages, weighted by their number of prefixes."""
    pools = [fitter.pool(index, offset_sigmas) for index in range(len(fitter.lines))]
    weights = [
        weight * len(stage.prefix_rewards) / sum(pool.weights)
        for pool, stage in zip(pools, fitter.stages, strict=True)
        for weight in pool.weights
    ]
    pool = PooledDraws(
        [draws for pool in pools for draws in pool.draws],
        weights,
        stops=fitter.stops,
        limits=[limit for pool in pools for limit in pool.limits],
    )
    return pool.at(np.nan if offset_sigmas is None else offset_sigmas, fitter.max_attempts)


def _for_new_prompts(
    observed: Estimate, *, value: float | None = None, top: float = np.inf
) -> Estimate:
    """Widen the pilot's interval by sqrt(2), to compare two independent samples of prompts."""
    value = observed.value if value is None else value
    half = (observed.high - observed.low) / 2 * np.sqrt(2)
    return Estimate(value=value, low=max(0.0, value - half), high=min(top, value + half))


def _at_least_binomial(share: Estimate, count: int) -> Estimate:
    """Widen the interval of a share to at least the binomial one, also if no case was seen."""
    smoothed = (share.value * count + 1) / (count + 2)
    half = 1.96 * float(np.sqrt(smoothed * (1 - smoothed) / count)) if count else 0.0
    low, high = min(share.low, share.value - half), max(share.high, share.value + half)
    return Estimate(value=share.value, low=low, high=high)


def _counts(results: Sequence[StarsResult]) -> NDArray[np.float64]:
    """Return `(prompts, 8)` counts, as four pairs of numerator and denominator.

    The pairs are: acceptance of first draws and segments started; drafted and kept tokens; forced
    and kept segments; answers that end without an accepted draw, and answers.
    """
    by_prompt: dict[int, list[float]] = defaultdict(lambda: [0.0] * 8)
    for result in results:
        row = by_prompt[result.prompt_index]
        started = [segment.attempts for segment in result.segments if segment.attempts]
        if result.abandoned_attempts:
            started.append(result.abandoned_attempts)
        row[0] += sum(attempts[0].acceptance_prob for attempts in started)
        row[1] += len(started)
        row[2] += result.usage.num_drafted_tokens
        row[3] += result.usage.num_kept_tokens
        row[4] += result.usage.num_forced
        row[5] += sum(segment.verdict != "fallback" for segment in result.segments)
        row[6] += result.finish_reason in ("rejected", "fallback")
        row[7] += 1
    return np.array(list(by_prompt.values()), dtype=float).reshape(-1, 8)


def _ratio(over: NDArray[np.float64], under: NDArray[np.float64], seed: int) -> Estimate:
    """Return sum(over) / sum(under), with an interval over prompts, which are the rows."""

    def ratio(picked: Indices) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore"):
            return np.asarray(over[picked].sum(-1) / under[picked].sum(-1))

    return bootstrap(ratio, len(over), seed=seed)
