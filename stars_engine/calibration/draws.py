"""How many draws a segment takes under a threshold, told from a few drafts of each prefix. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stars_engine.schedules import CurvePoint

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Draws:
    """Draws per segment, where prefixes differ in how readily a draft of theirs is accepted.

    Mean attempts are not 1 / mean acceptance: hard prefixes draw more often. The acceptance
    probability of a prefix is only seen in a few drafts; over prefixes it is taken to be
    Beta(a, b), with the mean and variance that a random-effects analysis finds. Under it the
    probability of j rejections in a row is E[(1 - p)^j] = prod over i < j of (b + i) / (a + b + i).

    Attributes:
        acceptance: Mean acceptance probability of a draft, 0 to 1.
        shared: Share of the variance of "accepted or not" that lies between prefixes, 0 to 1.
    """

    acceptance: float
    shared: float

    def rejections(self, count: int) -> Floats:
        """Return `(count + 1,)`: probabilities that the first 0, 1, ... `count` are rejected."""
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
        """Return the mean number of draws until one is accepted, `max_attempts` at most."""
        return float(self.rejections(max_attempts)[:-1].sum())

    def forced(self, max_attempts: int) -> float:
        """Return the share of segments of which no draw is accepted."""
        return float(self.rejections(max_attempts)[-1])


@dataclass(frozen=True, slots=True)
class Pool:
    """Draws of several stages, averaged over their prefixes.

    Attributes:
        draws: Of each stage.
        weights: Prefixes of each stage.
        stops: Whether an answer ends before a segment of which no draw is accepted.
    """

    draws: Sequence[Draws]
    weights: Sequence[int]
    stops: bool

    @property
    def acceptance(self) -> float:
        """Mean acceptance probability of a draft, 0 to 1."""
        return self._mean(draws.acceptance for draws in self.draws)

    def forced(self, max_attempts: int) -> float:
        """Return the share of segments of which no draw is accepted."""
        return self._mean(draws.forced(max_attempts) for draws in self.draws)

    def budget(self, max_attempts: int) -> float:
        """Return drafted over kept segments; where answers stop, their last draws are for none."""
        drafted = self._mean(draws.attempts(max_attempts) for draws in self.draws)
        kept = 1 - self.forced(max_attempts) if self.stops else 1.0
        return drafted / kept if kept > 0 else np.inf

    def at(self, offset_sigmas: float, max_attempts: int) -> CurvePoint:
        """Return the point of a curve whose draws these are."""
        return CurvePoint(
            offset_sigmas=offset_sigmas,
            acceptance=self.acceptance,
            budget=self.budget(max_attempts),
            forced=self.forced(max_attempts),
        )

    def _mean(self, values: Iterable[float]) -> float:
        return float(np.average(list(values), weights=self.weights))


def draws_of(residuals: Sequence[Floats], offset: float, beta: float) -> list[Draws]:
    """Return what drafts say of the draws under a threshold, for each stage.

    What prefixes differ by is taken to be the same in all of them, and is measured within stages:
    were they thrown together, means of stages that differ would pass for prefixes that do.

    Args:
        residuals: Of one stage or several, each `(prefixes, drafts)`; nan where there is no draft,
            -inf for one that may not be accepted.
        offset: How far above the baseline a draft must be, in reward units.
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
        # Unbiased within a prefix; of a single draft there is none.
        several = n > 1
        variances = ((square - p**2) * n / np.maximum(n - 1, 1))[several]
        noises.append((variances.sum(), several.sum(), (1 / n).sum(), len(n)))
    noise_sum, num_several, inverses, count = np.sum(noises, axis=0)
    scale = float(np.mean([mean * (1 - mean) for mean in means]))
    if scale == 0 or num_several < 2 or not sum(freedoms):
        return [Draws(mean, 0.0) for mean in means]
    noise = noise_sum / num_several * inverses / count
    between = max(0.0, sum(squares) / sum(freedoms) - float(noise))
    return [Draws(mean, min(1.0, between / scale)) for mean in means]


def acceptances(residuals: Floats, offset: float, beta: float) -> Floats:
    """Return min(1, exp((residual - offset) / beta)), elementwise; nan stays nan."""
    gaps = np.minimum(0.0, residuals - offset)
    if beta > 0:
        return np.asarray(np.exp(gaps / beta))
    return np.where(np.isnan(gaps), np.nan, gaps >= 0)
