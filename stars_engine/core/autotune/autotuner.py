"""What was learnt about speed, over all calls, and what follows for the next round."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from stars_engine.algorithm.rollout import Rollout
from stars_engine.algorithm.verification import NumDrafts
from stars_engine.backends.base import LanguageModel
from stars_engine.core.autotune.acceptance_estimates import AcceptanceEstimates, SegmentDraws
from stars_engine.core.autotune.allocation import Chances, allocate_rows
from stars_engine.core.autotune.cost_probe import probe_costs
from stars_engine.core.autotune.step_costs import StepCosts
from stars_engine.core.request import Request
from stars_engine.rewards.base import OffloadedReward, RewardModel
from stars_engine.rewards.reward_requests import single_models
from stars_engine.schedules import BaseSchedule
from stars_engine.types import SegmentEvent

_MOST_OUTSIDE = 4  # candidates, where rewards are other people's functions
_NUM_RECALLED = 8  # segments of an answer by which its next one is judged


class CandidateAutotuner:
    """Chooses how many candidates each request of a step drafts.

    There is one for each loaded model: a second call with the same settings starts from what the
    first has learnt.
    """

    def __init__(self) -> None:
        self._costs, self._estimates = StepCosts(), AcceptanceEstimates()
        self._has_probed = False
        self._hashed: tuple[BaseSchedule, str] | None = None  # the latest: mostly the next, too

    def allocate(
        self,
        requests: Sequence[Request],
        bounds: Sequence[NumDrafts],
        model: LanguageModel,
        *,
        max_rows: int | None,
    ) -> list[int]:
        """Return how many candidates each request of a step drafts.

        Where there is a choice for the first time, the model is probed.

        Args:
            requests: The batch.
            bounds: How many candidates each of them may draft.
            model: The language model.
            max_rows: Candidates in all, at most; None for no limit.
        """
        bounds = [_bounded(item, request) for item, request in zip(bounds, requests, strict=True)]
        if all(least == most for least, most in bounds):
            return [least for least, _ in bounds]
        if not self._has_probed:
            self._has_probed = True
            self._costs.probed = probe_costs(model, max_rows)
        curve = self._costs.curve(_num_tokens([request.rollout for request in requests]))
        chances = [
            Chances(*item, self._acceptance(request))
            for item, request in zip(bounds, requests, strict=True)
        ]
        return allocate_rows(chances, curve, max_rows)

    def note_step(self, rollouts: Sequence[Rollout], num_rows: int, seconds: float) -> None:
        """Learn from how long a step took."""
        per_token_s = seconds / rollouts[0].align.row_len
        self._costs.note(num_rows, per_token_s, _num_tokens(rollouts))

    def note_event(self, rollout: Rollout, reward: RewardModel, event: SegmentEvent) -> None:
        """Take in how the draws of a segment fared that is settled or given up."""
        segment = event.segment
        attempts = rollout.abandoned if segment is None else segment.attempts
        if attempts:
            accepted = segment is not None and segment.verdict == "accepted"
            index = len(rollout.segments) - (segment is not None)
            draws = SegmentDraws(index, len(attempts), accepted)
            self._estimates.note(self._settings(rollout, reward), draws)

    def _acceptance(self, request: Request) -> float:
        """Return how probable it is that the next draw of a request is accepted."""
        rollout = request.rollout
        first = max(0, len(rollout.segments) - _NUM_RECALLED)
        history = [
            SegmentDraws(first + offset, len(segment.attempts), segment.verdict == "accepted")
            for offset, segment in enumerate(rollout.segments[first:])
            if segment.attempts
        ]
        history.append(SegmentDraws(len(rollout.segments), len(rollout.draws), accepted=False))
        settings = self._settings(rollout, request.reward)
        return self._estimates.acceptance(settings, history)

    def _settings(self, rollout: Rollout, reward: RewardModel) -> Hashable:
        """Return what is equal for rollouts that are judged alike."""
        align = rollout.align
        assert align.schedule is not None
        if self._hashed is None or self._hashed[0] is not align.schedule:
            self._hashed = align.schedule, align.schedule.content_hash()
        return id(reward), self._hashed[1], align.beta, align.segment_len


def _bounded(bounds: NumDrafts, request: Request) -> NumDrafts:
    """Bound what is asked of rewards that are called outside of steps.

    Their time is not measured, they may cost money, and their other callers wait.
    """
    if not any(isinstance(part, OffloadedReward) for part in single_models(request.reward)):
        return bounds
    return bounds._replace(most=max(bounds.least, min(bounds.most, _MOST_OUTSIDE)))


def _num_tokens(rollouts: Sequence[Rollout]) -> int:
    return sum(len(rollout.prompt_ids) + len(rollout.token_ids) for rollout in rollouts)
