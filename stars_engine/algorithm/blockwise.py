"""Blockwise best-of-m: draft each segment a fixed number of times, and keep the best draft."""

from __future__ import annotations

from stars_engine.algorithm.rollout import Rollout
from stars_engine.algorithm.stars import StarsDecoding, judge, set_prompt_reward
from stars_engine.algorithm.verification import DraftVerification
from stars_engine.errors import RewardError
from stars_engine.types import SegmentEvent


class BlockwiseDecoding(StarsDecoding):
    """The `DecodingStrategy` that draws `max_attempts` drafts and keeps the highest reward.

    Nothing is tested, so thresholds, `beta` and `on_exhausted` have no effect. The first of equal
    rewards is kept. An answer whose drafts all have a non-finite or vetoed reward ends before the
    segment, with the finish reason "rejected".
    """

    def verify(self, verification: DraftVerification) -> SegmentEvent | None:
        """Record draws in index order; keep the best once all have been drawn."""
        rollout = verification.rollout
        while (outcome := verification.next_outcome()) is not None:
            if rollout.needs_prompt_reward:
                set_prompt_reward(rollout, outcome)
                continue
            if rollout.over_budget:
                return rollout.finish("budget")
            if isinstance(outcome, RewardError):
                raise outcome
            draw = judge(rollout, verification.candidate, outcome)
            untested = draw.attempt.replace(verdict="rejected", acceptance_prob=0.0)
            rollout.record(type(draw)(draw.candidate, untested), outcome)
        if verification.unscored is not None:
            return self._keep_unscored(verification, verification.unscored)
        if len(rollout.draws) < rollout.max_attempts:
            return None
        return _keep_best(rollout)


def _keep_best(rollout: Rollout) -> SegmentEvent:
    eligible = [index for index, draw in enumerate(rollout.draws) if draw.attempt.eligible]
    if not eligible:
        return rollout.finish("rejected")
    best = max(eligible, key=lambda index: rollout.draws[index].attempt.reward)
    draw = rollout.draws[best]
    attempt = draw.attempt.replace(verdict="accepted", acceptance_prob=1.0)
    rollout.draws[best] = type(draw)(draw.candidate, attempt)
    rollout.count(num_accepted=1)
    return rollout.keep(draw.candidate, "accepted", attempt)
