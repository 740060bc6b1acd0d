"""What ended answers tell about settings that do not fit: one warning of each kind, with its cure.

Warnings go to the log, where the engine's thread can speak; `EngineStats` has the same numbers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from stars_engine.algorithm.rollout import Rollout
from stars_engine.schedules import CalibratedSchedule

logger = logging.getLogger(__name__)


class Check(Protocol):
    """Looks out for one kind of trouble."""

    def observe(self, rollout: Rollout) -> str | None:
        """Take in an ended answer; return what to warn of, with its cure, once it is certain."""
        ...


class Diagnostics:
    """Shows ended answers to checks, and warns once of what each of them finds.

    Args:
        checks: What to look out for; `standard_checks()` if left out.
    """

    def __init__(self, checks: Sequence[Check] | None = None) -> None:
        self._open = list(standard_checks() if checks is None else checks)

    def observe(self, rollout: Rollout) -> None:
        """Take in an ended answer whose segments were judged.

        At temperature 0 it tells nothing: each segment has one draw, and the user has been warned.
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
    """Warns when the share of some cases in all that were seen is out of bounds.

    Attributes:
        count: Cases and all in one answer.
        min_seen: How many must be seen before a share means anything.
        is_wrong: Whether a share is out of bounds.
        message: What to say, with `{cases}`, `{seen}` and `{share}`.
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
    """Warns when more segments are forced than 10%, or than calibrations predict, if that is more.

    Attributes:
        min_seen: How many segments must be seen before their share means anything.
        limit: Share that is no trouble whatever was predicted.
    """

    min_seen: int = 50
    limit: float = 0.10
    num_forced: int = 0
    num_seen: int = 0
    num_asked_for: float = 0.0  # beyond the limit

    def observe(self, rollout: Rollout) -> str | None:
        """See `Check`."""
        forced, seen = rollout.costs.get("num_forced", 0), rollout.num_kept_segments
        self.num_forced += forced
        self.num_seen += seen
        schedule = rollout.align.schedule
        if isinstance(schedule, CalibratedSchedule) and schedule.predicted is not None:
            self.num_asked_for += seen * max(0.0, schedule.predicted.forced.high - self.limit)
        if self.num_seen < self.min_seen:
            return None
        if self.num_forced - self.num_asked_for <= self.limit * self.num_seen:
            return None
        share = self.num_forced / self.num_seen
        predicted = ""
        if self.num_asked_for:
            expected = self.limit + self.num_asked_for / self.num_seen
            predicted = f" where calibration foresees {expected:.1%} at most"
        return (
            f"{self.num_forced} of {self.num_seen} segments were forced ({share:.1%}){predicted}: "
            "none of their draws was accepted, and one was kept all the same. Cure: lower the "
            "thresholds, or raise beta or max_attempts; on_exhausted='stop' keeps no such segment"
        )


@dataclass(slots=True)
class DriftCheck:
    """Warns when first drafts lie off what a calibration expects of them.

    Attributes:
        min_seen: How many must be seen before their mean means anything.
        limit: Largest mean deviation taken for chance, in standard deviations of drafts.
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
            f"the rewards of {self.num_seen} first drafts lie {mean:+.2f} standard deviations from "
            "what the calibrated thresholds expect: prompts, models or settings are others than "
            "they were made for, so that the budget and the gain are others too. Cure: calibrate "
            "on prompts like these"
        )


def standard_checks() -> list[Check]:
    """Return a new list of what every runtime looks out for."""
    return [
        DriftCheck(),
        ForcedCheck(),
        RateCheck(
            accepted,
            min_seen=200,
            is_wrong=lambda share: share < 0.05,
            message="{cases} of {seen} draws were accepted ({share}): nearly all drafts are thrown "
            "away. Cure: lower the thresholds or raise beta, and check that the schedule was made "
            "for this model, this reward and this segment_len; aim at about 30%",
        ),
        RateCheck(
            similar,
            min_seen=50,
            is_wrong=lambda share: share > 1 / 3,
            message="{cases} of {seen} redrafts were the same as an earlier draw of their segment, "
            "or nearly so ({share}): drafting again changes little. Cure: raise temperature, top_k "
            "or top_p, or segment_len",
        ),
    ]


def accepted(rollout: Rollout) -> tuple[int, int]:
    """Return draws accepted by the test, and all judged draws."""
    return rollout.costs.get("num_accepted", 0), rollout.costs.get("num_attempts", 0)


def similar(rollout: Rollout) -> tuple[int, int]:
    """Return draws nearly equal to an earlier one of their segment, and all but its first."""
    drawn = [segment.attempts for segment in rollout.segments] + [rollout.abandoned]
    num_redrafts = sum(max(0, len(attempts) - 1) for attempts in drawn)
    return rollout.costs.get("num_similar_draws", 0), num_redrafts


def deviations(rollout: Rollout) -> list[float]:
    """Return how far first drafts lie from the baseline they were judged by, in its sigmas.

    There are none where the thresholds are not calibrated.
    """
    schedule = rollout.align.schedule
    if not isinstance(schedule, CalibratedSchedule):
        return []
    found = []
    prefix_reward = rollout.prompt_reward
    begun = [*((s.attempts, s.reward) for s in rollout.segments), (rollout.abandoned, None)]
    for index, (attempts, reward) in enumerate(begun):
        first = attempts[0] if attempts else None
        if first is not None and first.eligible:
            line = schedule.line(index, ends_text=first.ends_text)
            if line.sigma > 0:
                found.append((first.reward - line.baseline(prefix_reward)) / line.sigma)
        prefix_reward = math.nan if reward is None else reward
    return found
