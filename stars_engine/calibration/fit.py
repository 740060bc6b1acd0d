"""Fit thresholds to the rewards of pilot drafts: pure functions of arrays.

The fit is equivariant: if rewards are multiplied by s > 0 and shifted by t, so are the thresholds,
and acceptance does not change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stars_engine.calibration.draw_limits import (
    PrefixResiduals,
    StuckPrefixes,
    fit_limit,
    pool_draws,
)
from stars_engine.calibration.draws import Floats, PooledDraws, acceptances
from stars_engine.calibration.offsets import ALIKE, crossing, nearest_gap
from stars_engine.schedules import DrawLimit, Line

OFFSETS = tuple(step / 4 for step in range(-4, 11))  # of effort curves, in standard deviations
_FLAT = 0.1  # stages whose standard deviations differ by less than this share are pooled
_MIN_TERMINAL = 32  # drafts that end the answer, for a separate threshold
_MIN_PREFIXES = 8  # with fewer, a stage repeats the line of the stage before
_COMMON = 0.1  # share of drafts at the highest reward, from which it is a ceiling


@dataclass(frozen=True, slots=True)
class Target:
    """The target for the draws of a segment.

    Attributes:
        name: "budget" (drafted over kept tokens), "target_acceptance" (of a first draft) or
            "target_forced" (share of segments).
        value: Value of the target.
    """

    name: str
    value: float


@dataclass(frozen=True, slots=True)
class StageDrafts:
    """Drafts of one segment for all pilot prefixes.

    Attributes:
        prefix_rewards: `(prefixes,)`, RM(x, prefix); nan if unknown.
        rewards: `(prefixes, drafts)`, of the text including the draft; nan for an ineligible draft.
        ends_text: `(prefixes, drafts)` bool, whether the draft ends the answer.
    """

    prefix_rewards: Floats
    rewards: Floats
    ends_text: NDArray[np.bool_]

    @property
    def all_draws(self) -> Floats:
        """Rewards, with -inf for ineligible drafts."""
        return np.where(np.isfinite(self.rewards), self.rewards, -np.inf)

    @property
    def bodies(self) -> Floats:
        """All draws, with nan for drafts that end the answer."""
        return np.where(self.ends_text, np.nan, self.all_draws)

    @property
    def fitted(self) -> Floats:
        """The rewards to which the line is fitted: the bodies, or all draws if every draft ends."""
        bodies = self.bodies
        return bodies if np.isfinite(bodies).any() else self.all_draws

    @property
    def ends(self) -> Floats:
        """All draws, with nan for drafts that do not end the answer."""
        return np.where(self.ends_text, self.all_draws, np.nan)

    def to_values(self) -> dict[str, Any]:
        """Return plain lists for a file."""
        return {
            "prefix_rewards": self.prefix_rewards.tolist(),
            "rewards": self.rewards.tolist(),
            "ends_text": self.ends_text.tolist(),
        }

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> StageDrafts:
        """Read what `to_values` wrote."""
        return cls(
            np.array(values["prefix_rewards"], dtype=float),
            np.array(values["rewards"], dtype=float),
            np.array(values["ends_text"], dtype=bool),
        )


@dataclass(slots=True)
class Fitter:
    """Fits stages in order, each on prefixes that the thresholds so far accepted.

    Attributes:
        target: The target of each stage.
        max_attempts: Maximum number of draws per segment.
        beta: Acceptance softness in reward units; None until the first stage sets it from
            `relative_beta`.
        relative_beta: Softness over the standard deviation of the first stage's residuals.
        stops: Whether an answer ends before a segment without an accepted draw.
        limits_draws: Whether prefixes whose late draws are hopeless may get fewer draws.
        stages: Drafts of the stages so far.
        lines: Thresholds of the stages so far.
        terminals: After each stage, the threshold of drafts that end the answer; None while there
            are too few.
        limits: Limits on the draws of the stages so far; None for a stage without one.
    """

    target: Target
    max_attempts: int
    beta: float | None = None
    relative_beta: float = 0.0
    stops: bool = False
    limits_draws: bool = False
    stages: list[StageDrafts] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    terminals: list[Line | None] = field(default_factory=list)
    limits: list[DrawLimit | None] = field(default_factory=list)

    def add(self, drafts: StageDrafts) -> None:
        """Fit the next stage."""
        body = drafts.fitted
        if not self.lines and not np.isfinite(body).any():
            raise ValueError("no draft of the pilot has a finite reward that is not vetoed")
        self.stages.append(drafts)
        num_prefixes = int(np.isfinite(body).any(1).sum())
        if num_prefixes >= _MIN_PREFIXES or (num_prefixes and not self.lines):
            intercept, slope = regress(drafts.prefix_rewards, body)
            residuals = body - baseline(intercept, slope, drafts.prefix_rewards)[:, None]
            sigma = float(residuals[np.isfinite(residuals)].std())
            if self.beta is None:
                self.beta = self.relative_beta * sigma
            ceiling = ceiling_of(body)
            line = Line(intercept=intercept, slope=slope, offset=0, sigma=sigma, ceiling=ceiling)
            own = residuals_of(line, drafts.prefix_rewards, body)
            similar = [*self._similar_stages(sigma), PrefixResiduals(drafts.prefix_rewards, own)]
            self.lines.append(line.replace(offset=self._offset(similar, sigma)))
            self.terminals.append(self._fit_terminal())
            limit = self._fit_limit(similar)
            if limit is not None and self.target.name == "budget":
                offset = self._offset(similar, sigma, limit)  # spends what the limit saves
                self.lines[-1] = line.replace(offset=offset)
            self.limits.append(limit)
        else:
            self.lines.append(self.lines[-1])  # too few answers are left for a regression
            self.terminals.append(self._fit_terminal())
            self.limits.append(self.limits[-1])

    def draw_limits(self, stage: int) -> tuple[DrawLimit | None, ...]:
        """Return the limits of all stages up to `stage`; empty if there are none."""
        limits = tuple(self.limits[: stage + 1])
        return limits if any(limit is not None for limit in limits) else ()

    def pool(self, index: int, offset_sigmas: float | None = None) -> PooledDraws:
        """Return the draws of a stage under its threshold, or under another offset."""
        assert self.beta is not None
        line = self.lines[index]
        offset = line.offset if offset_sigmas is None else offset_sigmas * line.sigma
        stages, limit = [self._residuals(index)], self.limits[index]
        return pool_draws(stages, offset, self.beta, limit, stops=self.stops)

    def _residuals(self, index: int) -> PrefixResiduals:
        drafts = self.stages[index]
        found = residuals_of(self.lines[index], drafts.prefix_rewards, drafts.fitted)
        return PrefixResiduals(drafts.prefix_rewards, found)

    def _similar_stages(self, sigma: float) -> list[PrefixResiduals]:
        """Return residuals of earlier stages with a similar sigma, for a more stable offset.

        The first stage is never pooled, because its drafts continue a prompt.
        """
        return [
            self._residuals(index)
            for index in range(1, len(self.lines))
            if abs(self.lines[index].sigma - sigma) <= _FLAT * sigma
        ]

    def _offset(
        self, stages: Sequence[PrefixResiduals], sigma: float, limit: DrawLimit | None = None
    ) -> float:
        assert self.beta is not None
        beta, most, wanted = self.beta, self.max_attempts, self.target.value
        found = np.concatenate([part[part > -np.inf] for _, part in stages])

        def excess(offset: float) -> float:
            pool = pool_draws(stages, offset, beta, limit, stops=self.stops)
            match self.target.name:
                case "budget":
                    return pool.budget(most) - wanted
                case "target_forced":
                    return pool.forced(most) - wanted
                case _:
                    return wanted - pool.acceptance

        if beta > 0:
            return crossing(excess, found[np.isfinite(found)], beta)
        return nearest_gap(excess, found, sigma)

    def _fit_terminal(self) -> Line | None:
        """Fit a separate line for drafts that end the answer, whose rewards differ."""
        ends = [drafts.ends for drafts in self.stages]
        if sum(int(np.isfinite(part).sum()) for part in ends) < _MIN_TERMINAL:
            return None
        prefixes = np.concatenate([drafts.prefix_rewards for drafts in self.stages])
        rewards = np.concatenate(ends)
        known = np.isfinite(rewards).any(1)
        intercept, slope = regress(prefixes[known], rewards[known])
        prefixes, rewards = prefixes[known], rewards[known]
        residuals = rewards - baseline(intercept, slope, prefixes)[:, None]
        sigma = float(residuals[np.isfinite(residuals)].std())
        ceiling = ceiling_of(rewards)
        line = Line(intercept=intercept, slope=slope, offset=0, sigma=sigma, ceiling=ceiling)
        own = PrefixResiduals(prefixes, residuals_of(line, prefixes, rewards))
        return line.replace(offset=self._offset([own], sigma))

    def _fit_limit(self, similar: Sequence[PrefixResiduals]) -> DrawLimit | None:
        """Limit the draws of nearly hopeless prefixes, by the drafts of all stages like the last.

        Not if answers stop where draws run out: they would end sooner. Nor if the target is the
        share of segments without an accepted draw, which a limit raises.
        """
        if not self.limits_draws or self.stops or self.target.name == "target_forced":
            return None
        assert self.beta is not None
        pool = pool_draws(similar, self.lines[-1].offset, self.beta, None, stops=False)
        budget = pool.budget(self.max_attempts)
        usual = self.target.value if self.target.name == "budget" else budget
        few, last = max(2, math.ceil(usual)), len(self.lines) - 1
        found = [
            StuckPrefixes.of(self.stages[index].prefix_rewards, accepted, few)
            for index in range(min(1, last), last + 1)
            if (accepted := self._accepted(index)).shape[1] > few
        ]
        if few >= self.max_attempts or not found:
            return None
        return fit_limit(
            StuckPrefixes(*(np.concatenate(part) for part in zip(*found, strict=True))),
            max_attempts=self.max_attempts,
            few=few,
            budget=budget,
        )

    def _accepted(self, index: int) -> Floats:
        """Return `(prefixes, drafts)`, how the thresholds of a stage accept its drafts."""
        assert self.beta is not None
        beta, drafts, terminal = self.beta, self.stages[index], self.terminals[index]
        prefixes, rewards = drafts.prefix_rewards, drafts.all_draws

        def accepted_by(line: Line) -> Floats:
            return acceptances(residuals_of(line, prefixes, rewards), line.offset, beta)

        accepted = accepted_by(self.lines[index])
        if terminal is None:
            return accepted
        return np.where(drafts.ends_text, accepted_by(terminal), accepted)


def residuals_of(line: Line, prefix_rewards: Floats, rewards: Floats) -> Floats:
    """Return rewards relative to the baseline; inf for drafts at the ceiling, always accepted.

    Args:
        line: Baseline and ceiling.
        prefix_rewards: `(prefixes,)`.
        rewards: `(prefixes, drafts)`.
    """
    found = rewards - baseline(line.intercept, line.slope, prefix_rewards)[:, None]
    if line.ceiling is None:
        return np.asarray(found)
    return np.where(rewards >= line.ceiling, np.inf, found)


def ceiling_of(rewards: Floats) -> float | None:
    """Return the midpoint of the two highest rewards; None if few drafts reach the highest.

    If many drafts share the highest reward, it is the maximum of the reward model. A threshold
    above it would reject every draft of the best prefixes.
    """
    found = rewards[np.isfinite(rewards)]
    top, width = float(found.max()), float(np.ptp(found))
    at_top = found >= top - ALIKE * width
    if width == 0 or at_top.mean() < _COMMON:
        return None
    below = float(found[~at_top].max())
    return below + (top - below) / 2


def regress(prefix_rewards: Floats, rewards: Floats) -> tuple[float, float]:
    """Return intercept and slope of drafts' rewards on their prefixes' rewards, by least squares.

    The slope is 0 if the prefix rewards are equal, or one of them is unknown.

    Args:
        prefix_rewards: `(prefixes,)`.
        rewards: `(prefixes, drafts)`; non-finite values are ignored.
    """
    used = np.isfinite(rewards)
    y = rewards[used]
    if not np.isfinite(prefix_rewards[used.any(1)]).all():
        return float(y.mean()), 0.0
    x = np.broadcast_to(prefix_rewards[:, None], rewards.shape)[used]
    dx, dy = x - x.mean(), y - y.mean()
    variance, scale = float(dx @ dx), float(dy @ dy)
    if variance <= 1e-9 * scale or len(np.unique(x)) < 3:
        return float(y.mean()), 0.0
    slope = float(dx @ dy) / variance
    return float(y.mean() - slope * x.mean()), slope


def baseline(intercept: float, slope: float, prefix_rewards: Floats) -> Floats:
    """Return `Line.baseline` for an array of prefix rewards."""
    if slope == 0:
        return np.full(len(prefix_rewards), intercept)
    return np.asarray(intercept + slope * prefix_rewards)
