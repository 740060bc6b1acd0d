"""What aligned text costs: predicted by a pilot, and observed on other prompts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stars_engine.calibration.fit import OFFSETS, Fitter, Pool
from stars_engine.schedules import CurvePoint, Effort, Estimate
from stars_engine.types import StarsResult

NUM_RESAMPLES = 2000
_LEVEL = (2.5, 97.5)


def observed_effort(results: Sequence[StarsResult], *, seed: int = 0) -> Effort:
    """Return what answers cost, with intervals by resampling prompts, whose answers are kin."""
    counts = _counts(results)
    return Effort(
        acceptance=_ratio(counts[:, 0], counts[:, 1], seed),
        budget=_ratio(counts[:, 2], counts[:, 3], seed),
        forced=_ratio(counts[:, 4], counts[:, 5], seed),
        stopped=_ratio(counts[:, 6], counts[:, 7], seed),
    )


def pilot_effort(fitter: Fitter, results: Sequence[StarsResult]) -> Effort:
    """Predict the effort on as many other prompts.

    The values are expectations under the fitted stages; the intervals hold the chance of both the
    pilot's prompts and the others', each as the pilot shows it.
    """
    observed = observed_effort(results)
    mean = _mean_draws(fitter, None)
    forced = stopped = Estimate(value=0.0, low=0.0, high=0.0)
    if fitter.stops:
        assert observed.stopped is not None
        stopped = _at_least_binomial(observed.stopped, len(results))
        num_ended = mean.forced * sum(len(stage.prefix_rewards) for stage in fitter.stages)
        stopped = _around(num_ended / len(results), stopped, top=1.0)
    else:
        num_segments = sum(len(result.segments) for result in results)
        forced = _around(mean.forced, _at_least_binomial(observed.forced, num_segments), top=1.0)
    return Effort(
        acceptance=_around(mean.acceptance, observed.acceptance, top=1.0),
        budget=_around(mean.budget, observed.budget),
        forced=forced,
        stopped=stopped,
    )


def effort_curve(fitter: Fitter) -> tuple[CurvePoint, ...]:
    """Return what other offsets would come to on the pilot's prefixes."""
    return tuple(_mean_draws(fitter, offset) for offset in OFFSETS)


def _mean_draws(fitter: Fitter, offset_sigmas: float | None) -> CurvePoint:
    """Average over stages, by the prefixes that came so far."""
    pool = Pool(
        [fitter.draws(index, offset_sigmas) for index in range(len(fitter.lines))],
        [len(stage.prefix_rewards) for stage in fitter.stages],
        stops=fitter.stops,
    )
    return pool.at(np.nan if offset_sigmas is None else offset_sigmas, fitter.max_attempts)


def _around(value: float, observed: Estimate, top: float = np.inf) -> Estimate:
    """Widen the pilot's own interval by sqrt(2): two samples of prompts differ by so much."""
    half = (observed.high - observed.low) / 2 * np.sqrt(2)
    return Estimate(value=value, low=max(0.0, value - half), high=min(top, value + half))


def _at_least_binomial(share: Estimate, count: int) -> Estimate:
    """Widen a share's interval to that of independent cases: of none seen, some may come."""
    smoothed = (share.value * count + 1) / (count + 2)
    half = 1.96 * float(np.sqrt(smoothed * (1 - smoothed) / count)) if count else 0.0
    low, high = min(share.low, share.value - half), max(share.high, share.value + half)
    return Estimate(value=share.value, low=low, high=high)


def _counts(results: Sequence[StarsResult]) -> NDArray[np.float64]:
    """Return `(prompts, 8)`, four pairs.

    First draws' acceptance and segments begun; drafted and kept tokens; forced and kept segments;
    answers that end where no draw was accepted, and answers.
    """
    by_prompt: dict[int, list[float]] = defaultdict(lambda: [0.0] * 8)
    for result in results:
        row = by_prompt[result.prompt_index]
        begun = [segment.attempts for segment in result.segments if segment.attempts]
        if result.abandoned_attempts:
            begun.append(result.abandoned_attempts)
        row[0] += sum(attempts[0].acceptance_prob for attempts in begun)
        row[1] += len(begun)
        row[2] += result.usage.num_drafted_tokens
        row[3] += result.usage.num_kept_tokens
        row[4] += result.usage.num_forced
        row[5] += sum(segment.verdict != "fallback" for segment in result.segments)
        row[6] += result.finish_reason in ("rejected", "fallback")
        row[7] += 1
    return np.array(list(by_prompt.values()), dtype=float).reshape(-1, 8)


def _ratio(over: NDArray[np.float64], under: NDArray[np.float64], seed: int) -> Estimate:
    """Return sum(over) / sum(under), with an interval by bootstrap over rows."""
    if under.sum() == 0:
        return Estimate(value=np.nan, low=np.nan, high=np.nan)
    generator = np.random.default_rng(seed)
    picks = generator.integers(len(over), size=(NUM_RESAMPLES, len(over)))
    tops, bottoms = over[picks].sum(1), under[picks].sum(1)
    known = bottoms > 0
    low, high = np.percentile(tops[known] / bottoms[known], _LEVEL)
    return Estimate(value=float(over.sum() / under.sum()), low=float(low), high=float(high))
