"""What was learnt about speed, over all calls, and what follows for the next round."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from stars_engine.algorithm.rollout import Rollout
from stars_engine.algorithm.verification import NumDrafts
from stars_engine.backends.base import LanguageModel
from stars_engine.core.autotune.acceptance_estimates import Prospects, SegmentDraws
from stars_engine.core.autotune.allocation import Chances, allot
from stars_engine.core.autotune.cost_probe import probe_costs
from stars_engine.core.autotune.step_costs import RoundCosts
from stars_engine.rewards.base import OffloadedReward, RewardModel
from stars_engine.rewards.reward_requests import single_models
from stars_engine.schedules import BaseSchedule
from stars_engine.types import SegmentEvent

_MOST_OUTSIDE = 4  # candidates, where rewards are other people's functions
_NUM_RECALLED = 8  # segments of an answer by which its next one is judged


class Turn(NamedTuple):
    """A rollout whose turn it is to draft.

    Attributes:
        rollout: The rollout.
        reward: Its reward model.
        bounds: How many candidates it may draft.
    """

    rollout: Rollout
    reward: RewardModel
    bounds: NumDrafts


class Pacer:
    """Chooses how many candidates each rollout of a round drafts.

    One goes with a model for as long as it is loaded: the second call with the same settings goes
    on from what the first has found.
    """

    def __init__(self) -> None:
        self._costs, self._prospects = RoundCosts(), Prospects()
        self._has_probed = False
        self._hashed: tuple[BaseSchedule, str] | None = None  # the latest: mostly the next, too

    def counts(
        self, turns: Sequence[Turn], model: LanguageModel, max_rows: int | None
    ) -> list[int]:
        """Return how many candidates each of them drafts.

        Where there is a choice for the first time, the model is probed.
        """
        turns = [_within_outside(turn) for turn in turns]
        if all(turn.bounds.least == turn.bounds.most for turn in turns):
            return [turn.bounds.least for turn in turns]
        if not self._has_probed:
            self._has_probed = True
            self._costs.probed = probe_costs(model, max_rows)
        curve = self._costs.curve(_num_tokens([turn.rollout for turn in turns]))
        return allot([self._chances(turn) for turn in turns], curve, max_rows)

    def note_round(self, rollouts: Sequence[Rollout], num_rows: int, seconds: float) -> None:
        """Take in what a round took."""
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
            self._prospects.note(self._settings(rollout, reward), draws)

    def _chances(self, turn: Turn) -> Chances:
        rollout, bounds = turn.rollout, turn.bounds
        if bounds.sure:
            return Chances(bounds.least, bounds.most, 1.0)
        first = max(0, len(rollout.segments) - _NUM_RECALLED)
        history = [
            SegmentDraws(first + offset, len(segment.attempts), segment.verdict == "accepted")
            for offset, segment in enumerate(rollout.segments[first:])
            if segment.attempts
        ]
        history.append(SegmentDraws(len(rollout.segments), len(rollout.draws), accepted=False))
        acceptance = self._prospects.acceptance(self._settings(rollout, turn.reward), history)
        return Chances(bounds.least, bounds.most, acceptance)

    def _settings(self, rollout: Rollout, reward: RewardModel) -> Hashable:
        """Return what is equal for rollouts that are judged alike."""
        align = rollout.align
        assert align.schedule is not None
        if self._hashed is None or self._hashed[0] is not align.schedule:
            self._hashed = align.schedule, align.schedule.content_hash()
        return id(reward), self._hashed[1], align.beta, align.segment_len


def _within_outside(turn: Turn) -> Turn:
    """Bound what is asked of rewards that are called outside of rounds.

    What they take is not measured, they may cost money, and their other callers wait.
    """
    if not any(isinstance(part, OffloadedReward) for part in single_models(turn.reward)):
        return turn
    least, most = turn.bounds.least, min(turn.bounds.most, _MOST_OUTSIDE)
    return turn._replace(bounds=turn.bounds._replace(most=max(least, most)))


def _num_tokens(rollouts: Sequence[Rollout]) -> int:
    return sum(len(rollout.prompt_ids) + len(rollout.token_ids) for rollout in rollouts)
