"""The pilot: the real loop on pilot prompts, which stops at each segment to fit its threshold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from stars_engine.algorithm.candidate import Candidate
from stars_engine.algorithm.rollout import Rollout
from stars_engine.algorithm.stars import Stars
from stars_engine.algorithm.verification import NumDrafts, Trial
from stars_engine.calibration.fit import Fitter, StageDrafts
from stars_engine.errors import CalibrationStoppedError, RewardError
from stars_engine.rewards.base import Score
from stars_engine.schedules import CalibratedSchedule, LinearSchedule
from stars_engine.types import SegmentEvent

STOPPED = "the calibration was told to stop before its last stage"


class Pilot(Stars):
    """A `Decoding`: rollouts wait for each other at every segment, with their drafts on trial.

    When all are there, the segment's threshold is fitted to the drafts' rewards; then each rollout
    is judged by it, in the order of its draws, and goes on as under any schedule. So every stage is
    fitted on prefixes that the thresholds before it accepted, by the law itself.

    Stages that are known from an earlier run are not waited for: the same seed leads to the same
    prefixes.

    Args:
        fitter: Fits stages; those it already has are the known ones.
        num_drafts: Drafts of each prefix that a stage is fitted to.
        max_rows: Candidates drafted together at most; more come in several rounds.
        on_stage: Called when a stage has been fitted.
        should_stop: Asked before each stage is fitted; once it is true, it stays so.
    """

    is_pilot = True

    def __init__(
        self,
        fitter: Fitter,
        *,
        num_drafts: int,
        max_rows: int,
        on_stage: Callable[[], None] = lambda: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._fitter, self._num_drafts, self._max_rows = fitter, num_drafts, max_rows
        self._num_rollouts = 0
        self._on_stage, self._should_stop = on_stage, should_stop
        self._pieces: dict[Rollout, Trial] = {}  # of who is to draw more for the same stage
        self._trials: dict[Rollout, Trial | None] = {}  # by who takes part; the trial it is at
        self._schedules = [schedule_of(fitter, index) for index in range(len(fitter.lines))]

    def expect(self, num_rollouts: int) -> None:
        """Wait for so many, the engine's own count: others would never come."""
        self._num_rollouts = num_rollouts

    def num_drafts(self, rollout: Rollout) -> NumDrafts:
        """Draw what the stage is fitted to, as fast as bounds allow; then, what the loop would."""
        self._trials.setdefault(rollout, None)
        count = self._num_open(rollout)
        return NumDrafts(count, count, sure=True) if count else super().num_drafts(rollout)

    def _num_open(self, rollout: Rollout) -> int:
        """Return how many drafts the stage asks for at once; 0 if it is fitted."""
        if not self._is_open(rollout):
            return 0
        return min(self._num_drafts - self.first_draft(rollout), self._max_rows)

    def first_draft(self, rollout: Rollout) -> int:
        """Go on behind the draws that wait for their stage."""
        earlier = self._pieces.get(rollout)
        return super().first_draft(rollout) if earlier is None else len(earlier.candidates)

    def passes(self, rollout: Rollout, candidate: Candidate) -> bool:
        """None: a stage is fitted to the rewards of all of its drafts."""
        return False

    def open(self, rollout: Rollout, candidates: Sequence[Candidate]) -> Trial:
        """Add drafts to those of earlier rounds."""
        asked = self._num_open(rollout)
        earlier = self._pieces.pop(rollout, None)
        if earlier is None:
            trial = super().open(rollout, candidates)
        else:
            rollout.count(num_surplus_tokens=sum(c.num_generated_tokens for c in candidates))
            trial = earlier.extended(candidates, [rollout.reward_input(c) for c in candidates])
        # Of drafts that fail the first ends what is drawn.
        lacks = len(candidates) == asked and len(trial.candidates) < self._num_drafts
        if lacks and self._is_open(rollout):
            self._pieces[rollout] = trial
        return trial

    def walk(self, trial: Trial) -> SegmentEvent | None:
        """Wait until the stage is fitted, then judge."""
        rollout = trial.rollout
        if self._is_open(rollout):
            if not trial.all_there:
                return None
            if self._pieces.get(rollout) is trial:
                trial.closed = True  # for now: more drafts are to come
                return None
            self._trials[rollout] = trial
            if not self._all_waiting():
                return None
            self._fit()
        if len(trial.inputs) > len(trial.candidates) and trial.num_used == 0:
            self._take_prompt_reward(trial)
        schedule = self._schedules[len(rollout.segments)]
        if rollout.align.schedule is not schedule:
            own = {"segment_len": rollout.align.segment_len, "beta": schedule.beta}
            rollout.align = rollout.align.replace(schedule=schedule, **own)
        return super().walk(trial)

    def _is_open(self, rollout: Rollout) -> bool:
        """Whether the rollout is at a stage that is still to be fitted."""
        return len(rollout.segments) >= len(self._fitter.lines)

    def _all_waiting(self) -> bool:
        unfinished = [rollout for rollout in self._trials if not rollout.finished]
        return len(self._trials) == self._num_rollouts and all(
            self._trials[rollout] is not None for rollout in unfinished
        )

    def _fit(self) -> None:
        if self._should_stop():
            raise CalibrationStoppedError(STOPPED)
        trials = [t for r, t in self._trials.items() if t is not None and not r.finished]
        try:
            self._fitter.add(_drafts_of(trials))
        except ValueError as error:  # of the pilot alone: others share the round
            reason = str(error).rstrip(".")
            raise RewardError(
                f"the rewards of the pilot's drafts give no threshold: {reason}. Cure: look at "
                "what the reward says of unfinished answers, and at its floor"
            ) from error
        self._schedules.append(schedule_of(self._fitter, len(self._schedules)))
        self._trials = dict.fromkeys(self._trials)
        self._on_stage()

    @staticmethod
    def _take_prompt_reward(trial: Trial) -> None:
        """Note RM(x, "") where there is one; a reward that cannot judge nothing is no failure."""
        answer = trial.next_answer()
        if isinstance(answer, Score) and answer.eligible:
            trial.rollout.prompt_reward = trial.rollout.prefix_reward = answer.value
        trial.rollout.count(num_reward_calls=1)


def schedule_of(
    fitter: Fitter, stage: int, *, segment_len: int = 1, **about: Any
) -> CalibratedSchedule:
    """Return the schedule as it stood when a stage had been fitted."""
    assert fitter.beta is not None
    return CalibratedSchedule(
        stages=tuple(fitter.lines[: stage + 1]),
        terminals=tuple(fitter.terminals[: stage + 1]),
        beta=fitter.beta,
        max_attempts=fitter.max_attempts,
        segment_len=segment_len,
        **about,
    )


def opening_schedule() -> LinearSchedule:
    """Return a schedule that asks for RM(x, "") and is replaced before anything is judged."""
    return LinearSchedule(target=0, initial_weight=0)


def _drafts_of(trials: list[Trial]) -> StageDrafts:
    """Collect the rewards of drafts on trial, one row for each prefix."""
    prefix_rewards, rewards, ends_text = [], [], []
    for trial in trials:
        answers = trial.answers
        first = len(answers) - len(trial.candidates)
        prefix = answers[0] if first else None
        known = prefix.value if isinstance(prefix, Score) else trial.rollout.prefix_reward
        prefix_rewards.append(known)
        rewards.append([_value(answer) for answer in answers[first:]])
        ends_text.append([c.finish_reason == "stop" for c in trial.candidates])
    width = max(map(len, rewards))  # fewer where a draft failed
    return StageDrafts(
        np.array(prefix_rewards, dtype=float),
        np.array([row + [np.nan] * (width - len(row)) for row in rewards], dtype=float),
        np.array([row + [False] * (width - len(row)) for row in ends_text], dtype=bool),
    )


def _value(answer: object) -> float:
    return answer.value if isinstance(answer, Score) and answer.eligible else np.nan
