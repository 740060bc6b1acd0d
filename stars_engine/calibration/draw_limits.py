"""Fit limits on draws: prefixes after which hardly any draft is accepted get fewer draws.

Under a threshold relative to the prefix, some prefixes are nearly hopeless: all their draws are
rejected, `max_attempts` of them, and one is forced in the end. A few such prefixes can take most of
the budget. Where the reward of the prefix tells them apart, they get about as many draws as other
segments need, and the threshold of the others rises until the budget is spent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stars_engine.calibration.draws import DrawDistribution, Floats, PooledDraws, draws_of
from stars_engine.calibration.offsets import ALIKE
from stars_engine.schedules import CalibratedSchedule, DrawLimit

_MIN_PREFIXES = 8  # in the range of a limit
_HOPELESS = 0.5  # probability that no draw is accepted, from which a prefix is nearly hopeless
_WORTHWHILE = 0.1  # share of the draws after the first that a limit must save
_Z = 1.96


class PrefixResiduals(NamedTuple):
    """Residuals of the drafts of some prefixes.

    Attributes:
        prefix_rewards: `(prefixes,)`.
        residuals: `(prefixes, drafts)`; nan if there is no draft, -inf for an ineligible draft.
    """

    prefix_rewards: Floats
    residuals: Floats

    def rows(self, chosen: np.typing.NDArray[np.bool_]) -> PrefixResiduals:
        """Return some of the prefixes."""
        return PrefixResiduals(self.prefix_rewards[chosen], self.residuals[chosen])


class PrefixAcceptance(NamedTuple):
    """How many drafts of each prefix a threshold accepts.

    Attributes:
        prefix_rewards: `(prefixes,)`; nan if unknown.
        num_drafts: `(prefixes,)`, at least 1.
        acceptance: `(prefixes,)`, mean acceptance probability of its drafts.
    """

    prefix_rewards: Floats
    num_drafts: Floats
    acceptance: Floats


def pool_draws(
    stages: Sequence[PrefixResiduals],
    offset: float,
    beta: float,
    limit: DrawLimit | None,
    *,
    stops: bool,
) -> PooledDraws:
    """Estimate the draws of the prefixes of several stages under one threshold and one limit.

    Args:
        stages: The stages.
        offset: Offset of the threshold above the baseline, in reward units.
        beta: Acceptance softness, in reward units.
        limit: The limit of all stages.
        stops: See `PooledDraws`.
    """
    groups: list[tuple[Sequence[PrefixResiduals], int | None]] = [(stages, None)]
    if limit is not None:
        inside = [_in_range(stage.prefix_rewards, limit) for stage in stages]
        groups = [
            ([s.rows(~rows) for s, rows in zip(stages, inside, strict=True)], None),
            ([s.rows(rows) for s, rows in zip(stages, inside, strict=True)], limit.max_attempts),
        ]
    draws: list[DrawDistribution] = []
    weights: list[int] = []
    limits: list[int | None] = []
    for group, most in groups:
        residuals = [stage.residuals for stage in group]
        drawn = [int((~np.isnan(part)).any(1).sum()) for part in residuals]
        if not any(drawn):
            continue
        found = [part for part, count in zip(residuals, drawn, strict=True) if count]
        draws += draws_of(found, offset, beta)
        weights += [count for count in drawn if count]
        limits += [most] * len(found)
    return PooledDraws(draws, weights, stops=stops, limits=limits)


def fit_limit(
    found: PrefixAcceptance, *, max_attempts: int, few: int, extra: float
) -> DrawLimit | None:
    """Return the limit that surely saves most draws; None if none is worthwhile.

    The range is all prefixes up to a reward, or all from a reward. By the upper end of the interval
    of its acceptance, more than half of its segments must have no accepted draw at all. By the
    lower end of what is saved, the limit must save a tenth of all draws after the first.

    Args:
        found: The acceptance of the pilot's prefixes.
        max_attempts: Draws of a segment without the limit.
        few: Draws of a segment under the limit.
        extra: Mean number of draws after the first, per segment, without a limit.
    """
    rewards = found.prefix_rewards
    count = len(rewards)
    if few >= max_attempts or count < 2 * _MIN_PREFIXES or not np.isfinite(rewards).all():
        return None
    order = np.argsort(rewards, kind="stable")
    ordered = rewards[order]
    best, best_saved = None, _WORTHWHILE * extra
    gaps = np.flatnonzero(np.diff(ordered) > ALIKE * np.ptp(ordered))
    for gap in gaps:
        middle = float(ordered[gap] + (ordered[gap + 1] - ordered[gap]) / 2)
        for rows, ends in ((order[: gap + 1], {"high": middle}), (order[gap + 1 :], {"low": middle})):
            saved = _surely_saved(found, rows, max_attempts, few)
            if saved > best_saved:
                about = {"share": len(rows) / count, "saved": min(1.0, saved / extra)}
                best_saved, best = saved, DrawLimit(max_attempts=few, **ends, **about)
    return best


def limits_in_words(schedule: CalibratedSchedule) -> str | None:
    """Return which segments have fewer draws, and why, as one line; None if none have."""
    limits = [limit for limit in schedule.draw_limits if limit is not None]
    if not limits:
        return None
    last = limits[-1]
    about = ""
    if last.share is not None and last.saved is not None:
        about = (
            f" They were {last.share:.1%} of the pilot's prefixes, and the limit saves "
            f"{last.saved:.0%} or more of the draws after the first."
        )
    return (
        f"Fewer draws in {len(limits)} of {len(schedule.stages)} segments: at most "
        f"{last.max_attempts} instead of {schedule.max_attempts} if the reward before the segment "
        f"is {last.in_words()}, because none of the draws would be accepted more often than not."
        f"{about}"
    )


def _in_range(prefix_rewards: Floats, limit: DrawLimit) -> np.typing.NDArray[np.bool_]:
    return np.array([limit.holds_for(float(reward)) for reward in prefix_rewards], dtype=bool)


def _surely_saved(
    found: PrefixAcceptance, rows: np.typing.NDArray[np.intp], max_attempts: int, few: int
) -> float:
    """Return the draws per segment that a limit for some prefixes saves, at least; 0 if unsure."""
    if len(rows) < _MIN_PREFIXES:
        return 0.0
    highest = _highest_acceptance(found.acceptance[rows], found.num_drafts[rows])
    if (1 - highest) ** max_attempts < _HOPELESS:
        return 0.0
    # Draws are a convex function of the acceptance, so unequal prefixes draw more than this.
    draws = DrawDistribution(highest, 0.0)
    share, count = len(rows) / len(found.acceptance), len(found.acceptance)
    lowest_share = max(0.0, share - _Z * math.sqrt(share * (1 - share) / count))
    return lowest_share * (draws.attempts(max_attempts) - draws.attempts(few))


def _highest_acceptance(acceptance: Floats, num_drafts: Floats) -> float:
    """Return the upper end of the 95% interval of the mean acceptance of some prefixes.

    It is at least that of independent drafts, one of which was accepted more than was seen.
    """
    total = float(num_drafts.sum())
    mean = float(np.average(acceptance, weights=num_drafts))
    smoothed = (mean * total + 1) / (total + 2)
    between_drafts = math.sqrt(smoothed * (1 - smoothed) / total)
    between_prefixes = float(acceptance.std(ddof=1)) / math.sqrt(len(acceptance))
    return min(1.0, mean + _Z * max(between_drafts, between_prefixes))
