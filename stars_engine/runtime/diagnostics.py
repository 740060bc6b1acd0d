"""Detect unsuitable settings from finished answers, and log each kind of warning once.

Warnings go to the log because they come from the engine's thread. `EngineStats` has the same
numbers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from stars_engine.algorithm.rollout import Rollout
from stars_engine.config.preset_fields import ALLOWED_FROM
from stars_engine.schedules import CalibratedSchedule, ConstantSchedule

logger = logging.getLogger(__name__)


class Check(Protocol):
    """Detects one kind of problem."""

    def observe(self, rollout: Rollout) -> str | None:
        """Observe a finished answer; return the warning once the problem is certain."""


class Diagnostics:
    """Runs checks on finished answers, and logs the warning of each check once.

    Args:
        checks: The checks; `standard_checks()` by default.
    """

    def __init__(self, checks: Sequence[Check] | None = None) -> None:
        self._open = list(standard_checks() if checks is None else checks)

    def observe(self, rollout: Rollout) -> None:
        """Observe a finished answer whose segments were judged.

        Answers at temperature 0 are ignored: their segments have one draw each, and `generate` has
        already issued a warning.
        """
        if rollout.sampling.temperature == 0:
            return
        for check in tuple(self._open):
            message = check.observe(rollout)
            if message is not None:
                self._open.remove(check)
                logger.warning("%s", message)


@dataclass(slots=True)
class RateCheck:
    """Warns if the share of some cases is out of bounds.

    Attributes:
        count: Returns the number of cases and the total of one answer.
        min_seen: Minimum total before the share is tested.
        is_wrong: Whether a share is out of bounds.
        message: The warning, with `{cases}`, `{seen}` and `{share}`.
    """

    count: Callable[[Rollout], tuple[int, int]]
    min_seen: int
    is_wrong: Callable[[float], bool]
    message: str
    num_cases: int = 0
    num_seen: int = 0

    def observe(self, rollout: Rollout) -> str | None:
        """See `Check`."""
        cases, seen = self.count(rollout)
        self.num_cases += cases
        self.num_seen += seen
        if self.num_seen < self.min_seen or not self.is_wrong(self.num_cases / self.num_seen):
            return None
        share = f"{self.num_cases / self.num_seen:.1%}"
        return self.message.format(cases=self.num_cases, seen=self.num_seen, share=share)


@dataclass(slots=True)
class ForcedCheck:
    """Warns if more segments are forced than 10%, or than calibrations predict if that is more.

    Attributes:
        min_seen: Minimum number of segments before their share is tested.
        limit: Share that is always acceptable.
    """

    min_seen: int = 50
    limit: float = 0.10
    num_forced: int = 0
    num_seen: int = 0
    num_predicted: float = 0.0  # forced segments predicted in excess of the limit

    def observe(self, rollout: Rollout) -> str | None:
        """See `Check`."""
        forced, seen = rollout.costs.get("num_forced", 0), rollout.num_kept_segments
        self.num_forced += forced
        self.num_seen += seen
        schedule = rollout.align.schedule
        if isinstance(schedule, CalibratedSchedule) and schedule.predicted is not None:
            self.num_predicted += seen * max(0.0, schedule.predicted.forced.high - self.limit)
        if self.num_seen < self.min_seen:
            return None
        if self.num_forced - self.num_predicted <= self.limit * self.num_seen:
            return None
        share = self.num_forced / self.num_seen
        predicted = ""
        if self.num_predicted:
            expected = self.limit + self.num_predicted / self.num_seen
            predicted = f", but the calibration predicts {expected:.1%} at most"
        return (
            f"{self.num_forced} of {self.num_seen} segments were forced ({share:.1%}){predicted}: "
            "they were kept although none of their draws was accepted. Hint: lower the thresholds, "
            "or raise beta or max_attempts; on_exhausted='stop' keeps no such segment"
        )


@dataclass(slots=True)
class BudgetCheck:
    """Warns if answers cost a quarter more than the interval that calibrations predict.

    Attributes:
        min_seen: Minimum number of answers before their cost is tested.
        limit: Largest acceptable cost over the upper end of the interval.
    """

    min_seen: int = 32
    limit: float = 1.25
    num_seen: int = 0
    num_kept: int = 0
    num_drafted: int = 0
    most: float = 0.0  # drafted tokens at the upper end of the interval
    expected: float = 0.0  # predicted drafted tokens

    def observe(self, rollout: Rollout) -> str | None:
        """See `Check`."""
        schedule = rollout.align.schedule
        if not isinstance(schedule, CalibratedSchedule) or schedule.predicted is None:
            return None
        num_kept, budget = len(rollout.token_ids), schedule.predicted.budget
        self.num_seen += 1
        self.num_kept += num_kept
        self.num_drafted += rollout.costs.get("num_drafted_tokens", 0)
        self.most += num_kept * budget.high
        self.expected += num_kept * budget.value
        if self.num_seen < self.min_seen or self.num_drafted <= self.limit * self.most:
            return None
        return (
            f"{self.num_seen} answers drafted {self.num_drafted / self.num_kept:.2f} tokens per "
            f"kept token, but the calibration predicts {self.expected / self.num_kept:.2f}, "
            f"{self.most / self.num_kept:.2f} at most: these prompts differ from those of the "
            "calibration. Hint: engine.recalibrate() fits the thresholds to the prompts of recent "
            "calls, stars calibrate --from-trace FILE to those of a trace"
        )


@dataclass(slots=True)
class DriftCheck:
    """Warns if the rewards of first drafts deviate from what a calibration expects.

    Attributes:
        min_seen: Minimum number of drafts before their mean is tested.
        limit: Largest acceptable mean deviation, in standard deviations of drafts.
    """

    min_seen: int = 200
    limit: float = 0.5
    num_seen: int = 0
    total: float = 0.0

    def observe(self, rollout: Rollout) -> str | None:
        """See `Check`."""
        found = deviations(rollout)
        self.num_seen += len(found)
        self.total += sum(found)
        if self.num_seen < self.min_seen or abs(self.total / self.num_seen) <= self.limit:
            return None
        mean = self.total / self.num_seen
        return (
            f"the rewards of {self.num_seen} first drafts deviate by {mean:+.2f} standard "
            "deviations from what the calibrated thresholds expect. Prompts, models or settings "
            "differ from those of the calibration, so its predictions do not hold. Hint: "
            "call engine.recalibrate(), or calibrate on prompts like these"
        )


class GuardCheck:
    """Warns if the preset "guard" judges a reward with a scale of its own."""

    def observe(self, rollout: Rollout) -> str | None:
        """See `Check`."""
        align = rollout.align
        schedule = align.schedule
        if not isinstance(schedule, ConstantSchedule) or schedule.value != ALLOWED_FROM:
            return None
        if align.on_exhausted in ("best", "last"):  # nothing is refused
            return None
        drawn = [*(segment.attempts for segment in rollout.segments), rollout.abandoned]
        rewards = [attempt.reward for attempts in drawn for attempt in attempts]
        outside = [each for each in rewards if math.isfinite(each) and not 0 <= each <= 1]
        if not outside:
            return None
        return (
            f"the rewards of drafts, such as {outside[0]:.3g}, are not between 0 and 1, but the "
            f"preset 'guard' reads them as refused (below {ALLOWED_FROM:g}) or allowed. Hint: for "
            "a reward with a scale, use the preset 'best' or 'safe'; for a guard with a scale of "
            "its own, set threshold=... to the lowest reward of allowed text"
        )


def standard_checks() -> list[Check]:
    """Return new instances of the checks that every runtime runs."""
    return [
        BudgetCheck(),
        DriftCheck(),
        ForcedCheck(),
        GuardCheck(),
        RateCheck(
            accepted,
            min_seen=200,
            is_wrong=lambda share: share < 0.05,
            message="{cases} of {seen} draws were accepted ({share}): nearly all drafts are "
            "discarded. Hint: lower the thresholds or raise beta, and check that the schedule was "
            "made for this model, this reward and this segment_len; aim for about 30%",
        ),
        RateCheck(
            similar,
            min_seen=50,
            is_wrong=lambda share: share > 1 / 3,
            message="{cases} of {seen} draws repeat an earlier draw of their segment, or nearly so "
            "({share}): drawing again adds little. Hint: raise temperature, top_k, top_p or "
            "segment_len",
        ),
    ]


def accepted(rollout: Rollout) -> tuple[int, int]:
    """Return the number of accepted draws and of judged draws."""
    return rollout.costs.get("num_accepted", 0), rollout.costs.get("num_attempts", 0)


def similar(rollout: Rollout) -> tuple[int, int]:
    """Return the number of near-duplicate draws, and of draws after the first of a segment."""
    drawn = [segment.attempts for segment in rollout.segments] + [rollout.abandoned]
    num_redrafts = sum(max(0, len(attempts) - 1) for attempts in drawn)
    return rollout.costs.get("num_similar_draws", 0), num_redrafts


def deviations(rollout: Rollout) -> list[float]:
    """Return the deviation of first drafts from the calibrated baseline, in its sigmas.

    The list is empty if the thresholds are not calibrated.
    """
    schedule = rollout.align.schedule
    if not isinstance(schedule, CalibratedSchedule):
        return []
    found = []
    prefix_reward = rollout.prompt_reward
    started = [*((s.attempts, s.reward) for s in rollout.segments), (rollout.abandoned, None)]
    for index, (attempts, reward) in enumerate(started):
        first = attempts[0] if attempts else None
        if first is not None and first.eligible:
            line = schedule.line(index, ends_text=first.ends_text)
            if line.sigma > 0:
                found.append((first.reward - line.baseline(prefix_reward)) / line.sigma)
        prefix_reward = math.nan if reward is None else reward
    return found
