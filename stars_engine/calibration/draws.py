"""Estimate how many draws a segment takes under a threshold, from a few drafts per prefix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stars_engine.schedules import CurvePoint

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class DrawDistribution:
    """The distribution of draws per segment, if acceptance differs between prefixes.

    Mean attempts are not 1 / mean acceptance, because hard prefixes need more draws. The acceptance
    probability of a prefix is known only from a few drafts. Over prefixes it is modelled as
    Beta(a, b), with the mean and variance of a random-effects analysis. Then the probability of j
    rejections in a row is E[(1 - p)^j] = prod over i < j of (b + i) / (a + b + i).

    Attributes:
        acceptance: Mean acceptance probability of a draft, 0 to 1.
        shared: Share of the variance of acceptance that lies between prefixes, 0 to 1.
    """

    acceptance: float
    shared: float

    def rejections(self, count: int) -> Floats:
        """Return `(count + 1,)`: probabilities that the first 0, 1, ... draws are all rejected."""
        if self.acceptance in (0.0, 1.0) or self.shared >= 1:
            rejected = np.full(count + 1, 1 - self.acceptance)
            rejected[0] = 1
            return rejected
        if self.shared <= 0:
            return np.asarray((1 - self.acceptance) ** np.arange(count + 1))
        size = 1 / self.shared - 1  # a + b
        index = np.arange(count)
        ratios = ((1 - self.acceptance) * size + index) / (size + index)
        return np.concatenate([[1.0], np.cumprod(ratios)])

    def attempts(self, max_attempts: int) -> float:
        """Return the mean number of draws until one is accepted, up to `max_attempts`."""
        return float(self.rejections(max_attempts)[:-1].sum())

    def forced(self, max_attempts: int) -> float:
        """Return the share of segments of which no draw is accepted."""
        return float(self.rejections(max_attempts)[-1])


@dataclass(frozen=True, slots=True)
class PooledDraws:
    """Draw distributions of several stages, or of parts of them, averaged over their prefixes.

    Attributes:
        draws: One distribution per stage.
        weights: Number of prefixes per stage.
        stops: Whether an answer ends before a segment without an accepted draw.
        limits: Maximum draws of a segment in each stage, None if it has no limit of its own; empty
            if no stage has one.
    """

    draws: Sequence[DrawDistribution]
    weights: Sequence[float]
    stops: bool
    limits: Sequence[int | None] = ()

    @property
    def acceptance(self) -> float:
        """Mean acceptance probability of a draft, 0 to 1."""
        return self._mean(draws.acceptance for draws in self.draws)

    def forced(self, max_attempts: int) -> float:
        """Return the share of segments of which no draw is accepted."""
        return self._mean(draws.forced(most) for draws, most in self._limited(max_attempts))

    def budget(self, max_attempts: int) -> float:
        """Return drafted over kept segments, including the draws before an answer stops."""
        drafted = self._mean(draws.attempts(most) for draws, most in self._limited(max_attempts))
        kept = 1 - self.forced(max_attempts) if self.stops else 1.0
        return drafted / kept if kept > 0 else np.inf

    def at(self, offset_sigmas: float, max_attempts: int) -> CurvePoint:
        """Return the point of the effort curve at an offset."""
        return CurvePoint(
            offset_sigmas=offset_sigmas,
            acceptance=self.acceptance,
            budget=self.budget(max_attempts),
            forced=self.forced(max_attempts),
        )

    def _limited(self, max_attempts: int) -> Iterator[tuple[DrawDistribution, int]]:
        """Yield each distribution with its maximum number of draws."""
        limits = self.limits or [None] * len(self.draws)
        for draws, limit in zip(self.draws, limits, strict=True):
            yield draws, max_attempts if limit is None else min(limit, max_attempts)

    def _mean(self, values: Iterable[float]) -> float:
        return float(np.average(list(values), weights=self.weights))


def draws_of(residuals: Sequence[Floats], offset: float, beta: float) -> list[DrawDistribution]:
    """Estimate the draw distribution of each stage under a threshold.

    The variance between prefixes is assumed to be equal in all stages, and is measured within each
    stage. Otherwise, differences between stages would count as differences between prefixes.

    Args:
        residuals: One array per stage, `(prefixes, drafts)`; nan if there is no draft, -inf for an
            ineligible draft.
        offset: Offset of the threshold above the baseline, in reward units.
        beta: Acceptance softness, in reward units.
    """
    means, squares, freedoms, noises = [], [], [], []
    for part in residuals:
        accepted = acceptances(part, offset, beta)
        drawn = ~np.isnan(part)
        number = drawn.sum(1)
        rows = number > 0
        n = number[rows]
        p = np.where(drawn, accepted, 0).sum(1)[rows] / n
        square = np.where(drawn, np.square(accepted), 0).sum(1)[rows] / n
        means.append(float(np.average(p, weights=n)))
        squares.append(float(np.square(p - p.mean()).sum()))
        freedoms.append(len(p) - 1)
        # Unbiased variance within a prefix, which needs more than one draft.
        several = n > 1
        variances = ((square - p**2) * n / np.maximum(n - 1, 1))[several]
        noises.append((variances.sum(), several.sum(), (1 / n).sum(), len(n)))
    noise_sum, num_several, inverses, count = np.sum(noises, axis=0)
    scale = float(np.mean([mean * (1 - mean) for mean in means]))
    if scale == 0 or num_several < 2 or not sum(freedoms):
        return [DrawDistribution(mean, 0.0) for mean in means]
    noise = noise_sum / num_several * inverses / count
    between = max(0.0, sum(squares) / sum(freedoms) - float(noise))
    return [DrawDistribution(mean, min(1.0, between / scale)) for mean in means]


def acceptances(residuals: Floats, offset: float, beta: float) -> Floats:
    """Return `acceptance_prob` of each residual above an offset; nan stays nan."""
    gaps = np.minimum(0.0, residuals - offset)
    if beta > 0:
        return np.asarray(np.exp(gaps / beta))
    return np.where(np.isnan(gaps), np.nan, gaps >= 0)
