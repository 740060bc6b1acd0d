"""Fit limits on draws: where draws that follow a few rejected ones are seldom accepted.

Under a threshold relative to the prefix, a few prefixes can be nearly hopeless: all `max_attempts`
draws are rejected, and one is forced in the end. They may take most of the budget. Where that is
so, by the reward of the prefix, segments get about as many draws as they take on average, and the
thresholds rise until the budget is spent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stars_engine.calibration.draws import DrawDistribution, Floats, PooledDraws, draws_of
from stars_engine.calibration.offsets import ALIKE
from stars_engine.schedules import CalibratedSchedule, DrawLimit

_MIN_STUCK = 16  # prefixes in the range of a limit whose first draws are all rejected
_NOT_PAYING = 0.5  # acceptance of late draws, over that of all draws, up to which they do not pay
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


class StuckPrefixes(NamedTuple):
    """Prefixes by what a threshold does to their first drafts and to their late ones.

    Attributes:
        prefix_rewards: `(prefixes,)`; nan if unknown.
        stuck: `(prefixes,)`, probability that the first drafts are all rejected.
        late: `(prefixes,)`, mean acceptance probability of the drafts after them.
        num_late: `(prefixes,)`, number of drafts after them, at least 1.
    """

    prefix_rewards: Floats
    stuck: Floats
    late: Floats
    num_late: Floats

    @classmethod
    def of(cls, prefix_rewards: Floats, accepted: Floats, few: int) -> StuckPrefixes:
        """Split drafts after the first few.

        Args:
            prefix_rewards: `(prefixes,)`.
            accepted: `(prefixes, drafts)`, acceptance probabilities in the order of the drafts.
            few: Number of first drafts, less than all.
        """
        first, late = accepted[:, :few], accepted[:, few:]
        num_late = np.full(len(late), float(late.shape[1]))
        return cls(prefix_rewards, (1 - first).prod(1), late.mean(1), num_late)


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
    found: StuckPrefixes, *, max_attempts: int, few: int, budget: float
) -> DrawLimit | None:
    """Return the limit that surely saves most draws; None if none is worthwhile.

    The range is all prefixes up to a reward, or all from a reward. After a few rejected draws, the
    later ones must be accepted less than half as often as draws are on average, by the upper
    end of the interval. (Still later ones are accepted less often, because the prefixes that are
    left are the harder ones.) By the lower end, the limit must save a tenth of all draws after the
    first.

    Args:
        found: The prefixes of the pilot.
        max_attempts: Draws of a segment without the limit.
        few: Draws of a segment under the limit.
        budget: Mean number of draws per segment without a limit.
    """
    rewards = found.prefix_rewards
    if not len(rewards) or not np.isfinite(rewards).all():
        return None
    order = np.argsort(rewards, kind="stable")
    ordered = rewards[order]
    extra, most = budget - 1, _NOT_PAYING / budget
    best, best_saved = None, _WORTHWHILE * extra
    for gap in np.flatnonzero(np.diff(ordered) > ALIKE * np.ptp(ordered)):
        middle = float(ordered[gap] + (ordered[gap + 1] - ordered[gap]) / 2)
        below, above = order[: gap + 1], order[gap + 1 :]
        for rows, ends in ((below, {"high": middle}), (above, {"low": middle})):
            saved = _surely_saved(found, rows, max_attempts - few, most)
            if saved > best_saved:
                about = {"share": len(rows) / len(rewards), "saved": min(1.0, saved / extra)}
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
            f" That holds for {last.share:.0%} of the pilot's prefixes, and saves {last.saved:.0%} "
            "or more of the draws after the first."
        )
    return (
        f"Fewer draws in {len(limits)} of {len(schedule.stages)} segments: at most "
        f"{last.max_attempts} instead of {schedule.max_attempts} if the reward before the segment "
        f"is {last.in_words()}, because later draws are seldom accepted.{about}"
    )


def _in_range(prefix_rewards: Floats, limit: DrawLimit) -> np.typing.NDArray[np.bool_]:
    return np.array([limit.holds_for(float(reward)) for reward in prefix_rewards], dtype=bool)


def _surely_saved(
    found: StuckPrefixes, rows: np.typing.NDArray[np.intp], num_late: int, most: float
) -> float:
    """Return the late draws per segment that a limit for some prefixes saves, at least.

    Args:
        found: All prefixes.
        rows: Those in the range of the limit.
        num_late: Draws that it removes from a segment without an accepted one.
        most: Acceptance of late draws up to which they are not worth it; above, 0 is returned.
    """
    stuck = found.stuck[rows]
    if stuck.sum() < _MIN_STUCK:
        return 0.0
    highest = _highest_mean(found.late[rows], stuck, found.num_late[rows])
    if highest >= most:
        return 0.0
    count = len(found.stuck)
    share = float(stuck.sum()) / count
    lowest_share = max(0.0, share - _Z * math.sqrt(share * (1 - share) / count))
    return lowest_share * DrawDistribution(highest, 0.0).attempts(num_late)


def _highest_mean(late: Floats, stuck: Floats, num_late: Floats) -> float:
    """Return the upper end of the 95% interval of the acceptance of late drafts.

    It is at least that of independent drafts, one of which was accepted more than was seen.
    """
    mean = float(np.average(late, weights=stuck))
    total = float((stuck * num_late).sum())
    smoothed = (mean * total + 1) / (total + 2)
    between_drafts = smoothed * (1 - smoothed) / total
    between_prefixes = float(np.average((late - mean) ** 2, weights=stuck)) / float(stuck.sum())
    return min(1.0, mean + _Z * math.sqrt(max(between_drafts, between_prefixes)))
