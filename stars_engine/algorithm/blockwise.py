"""Blockwise best-of-m: draft each segment a fixed number of times, and keep the best draft."""

from __future__ import annotations

from stars_engine.algorithm.candidate import Candidate, Draw
from stars_engine.algorithm.rollout import Rollout
from stars_engine.algorithm.stars import StarsDecoding, judge
from stars_engine.types import Score, SegmentEvent


class BlockwiseDecoding(StarsDecoding):
    """The `DecodingStrategy` that draws `max_attempts` drafts and keeps the highest reward.

    Nothing is tested, so thresholds, `beta` and `on_exhausted` have no effect. The first of equal
    rewards is kept. An answer whose drafts all have a non-finite or vetoed reward ends before the
    segment, with the finish reason "rejected".
    """

    def _judge(self, rollout: Rollout, candidate: Candidate, score: Score) -> Draw:
        draw = judge(rollout, candidate, score)
        return Draw(candidate, draw.attempt.replace(verdict="rejected", acceptance_prob=0.0))

    def _end_attempts(self, rollout: Rollout) -> SegmentEvent:
        """Keep the best of all drafts."""
        eligible = [index for index, draw in enumerate(rollout.draws) if draw.attempt.eligible]
        if not eligible:
            return rollout.finish("rejected")
        best = max(eligible, key=lambda index: rollout.draws[index].attempt.reward)
        candidate = rollout.draws[best].candidate
        attempt = rollout.draws[best].attempt.replace(verdict="accepted", acceptance_prob=1.0)
        rollout.draws[best] = Draw(candidate, attempt)
        rollout.count(num_accepted=1)
        return rollout.keep(candidate, "accepted", attempt)
