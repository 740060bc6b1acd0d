"""The pilot: answers to pilot prompts, for which thresholds are fitted segment by segment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stars_engine.algorithm.candidate import Candidate
from stars_engine.algorithm.rollout import Rollout
from stars_engine.algorithm.stars import StarsDecoding, apply_on_exhausted, judge
from stars_engine.algorithm.verification import DraftVerification, NumDrafts
from stars_engine.calibration.fit import Fitter, StageDrafts
from stars_engine.calibration.host import Host, RewardPrompts
from stars_engine.config import AlignParams, SamplingParams
from stars_engine.errors import CalibrationStoppedError, RewardError, RewardOutcome
from stars_engine.schedules import CalibratedSchedule, LinearSchedule
from stars_engine.types import Prompt, Score, SegmentEvent, StarsResult


@dataclass(slots=True)
class PrefixDrafts:
    """Drafts of the next segment of one prefix, with their rewards.

    Attributes:
        rollout: The prefix.
        prefix_reward: The reward of the prefix; nan if there is none.
        candidates: The drafts, in the order of their attempts.
        outcomes: The reward or error of each draft.
    """

    rollout: Rollout
    prefix_reward: float
    candidates: list[Candidate] = field(default_factory=list)
    outcomes: list[RewardOutcome] = field(default_factory=list)


class StageDecoding:
    """The `DecodingStrategy` of one stage: draft and score one segment, and collect the drafts.

    Earlier segments that are not accepted yet are judged under their own thresholds first. An
    answer ends when its drafts are collected.

    Args:
        fitter: Has fitted the earlier segments.
        num_drafts: Number of drafts per prefix.
        on_prompt: Called on the engine's thread when the drafts of a prompt are complete, with the
            number of prompts for which they are.

    Attributes:
        collected: The collected drafts, by prompt index.
        rollouts: All answers, by prompt index.
    """

    def __init__(
        self,
        fitter: Fitter,
        *,
        num_drafts: int,
        on_prompt: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.collected: dict[int, PrefixDrafts] = {}
        self.rollouts: dict[int, Rollout] = {}
        self._index = len(fitter.lines)
        self._schedules = [schedule_of(fitter, index) for index in range(self._index)]
        self._num_drafts = num_drafts
        self._on_prompt, self._num_complete = on_prompt, 0
        self._stars = _ScoreAll()

    def num_drafts(self, rollout: Rollout) -> NumDrafts:
        """Draft all that are missing in this stage; as STARS does in earlier segments."""
        self.rollouts[rollout.prompt_index] = rollout
        if not self._collects(rollout):
            return self._stars.num_drafts(rollout)
        count = self._num_drafts - self.first_draft(rollout)
        return NumDrafts(count, count)

    def first_draft(self, rollout: Rollout) -> int:
        """Return the attempt number of the next draw of the segment."""
        if not self._collects(rollout):
            return self._stars.first_draft(rollout)
        drafts = self.collected.get(rollout.prompt_index)
        return 0 if drafts is None else len(drafts.candidates)

    def open(self, rollout: Rollout, candidates: Sequence[Candidate]) -> DraftVerification:
        """Request all rewards, and RM(x, "") before the first segment."""
        return self._stars.open(rollout, candidates)

    def verify(self, verification: DraftVerification) -> SegmentEvent | None:
        """Once all rewards have arrived, collect the drafts, or judge them in earlier segments."""
        rollout = verification.rollout
        if not verification.all_arrived:
            return None
        if len(verification.inputs) > len(verification.candidates):
            _take_prompt_reward(rollout, verification.next_outcome())
        if not self._collects(rollout):
            use_schedule(rollout, self._schedules[len(rollout.segments)])
            return self._stars.verify(verification)
        drafts = self.collected.setdefault(
            rollout.prompt_index, PrefixDrafts(rollout, rollout.prefix_reward)
        )
        drafts.candidates += verification.candidates
        while (outcome := verification.next_outcome()) is not None:
            drafts.outcomes.append(outcome)
        if len(drafts.candidates) < self._num_drafts and not verification.next_failed:
            return None  # the next step drafts the others
        self._num_complete += 1
        self._on_prompt(self._num_complete)
        return rollout.finish("length")

    def _collects(self, rollout: Rollout) -> bool:
        return len(rollout.segments) == self._index


class _ScoreAll(StarsDecoding):
    """STARS that scores every draft, because thresholds are fitted to all rewards."""

    def is_unscored(self, rollout: Rollout, candidate: Candidate) -> bool:
        return False


class Pilot:
    """Runs the pilot stage by stage, with one engine call per stage.

    A stage drafts the next segment of every prefix, fits its threshold to the rewards of the
    drafts, and judges the drafts under that threshold in the order of their draws. So every stage
    is fitted on prefixes that the earlier thresholds accepted, exactly as STARS accepts them.

    Args:
        engine: Drafts and scores.
        fitter: Fits the stages. Stages that it already has are not fitted again, because the same
            seed leads to the same prefixes.
        num_drafts: Number of drafts per prefix and stage.
        on_stage: Called after each stage is fitted.
        on_prompt: Called while a stage runs, on the engine's thread, with the number of prompts
            that have all drafts of this stage, and of all prompts in it.
        should_stop: Called before each stage; if it returns true, the pilot ends.
    """

    def __init__(
        self,
        engine: Host,
        fitter: Fitter,
        *,
        num_drafts: int,
        on_stage: Callable[[], None] = lambda: None,
        on_prompt: Callable[[int, int], None] = lambda *_: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._engine, self._fitter, self._num_drafts = engine, fitter, num_drafts
        self._on_stage, self._on_prompt, self._should_stop = on_stage, on_prompt, should_stop
        self._rollouts: dict[int, Rollout] = {}  # the latest part of each answer, by prompt
        self._costs: dict[int, Counter[str]] = {}  # costs of its earlier parts

    def run(
        self,
        prompts: Sequence[Prompt],
        *,
        sampling: SamplingParams,
        align: AlignParams,
        reward_prompt: RewardPrompts = None,
    ) -> list[StarsResult]:
        """Run all stages and return the pilot's answers.

        Raises:
            CalibrationStoppedError: `should_stop` returned true.
            RequestError: The reward model failed on a pilot prompt, or its rewards give no
                threshold.
        """
        stage = self._next_stage(len(prompts))
        self._engine.decode(
            prompts,
            stage,
            sampling=sampling,
            align=align.replace(schedule=opening_schedule()),
            reward_prompt=reward_prompt,
        )
        self._rollouts = dict(stage.rollouts)
        while stage.collected:
            self._fit(stage)
            unfinished = [self._continue(drafts) for drafts in stage.collected.values()]
            unfinished = [rollout for rollout in unfinished if not rollout.finished]
            if not unfinished:
                break
            stage = self._next_stage(len(unfinished))
            self._engine.resume(unfinished, stage)
        return [self._result(index) for index in sorted(self._rollouts)]

    def _next_stage(self, num_prompts: int) -> StageDecoding:
        if self._should_stop():
            raise CalibrationStoppedError("the calibration was stopped before its last stage")
        return StageDecoding(
            self._fitter,
            num_drafts=self._num_drafts,
            on_prompt=lambda complete: self._on_prompt(complete, num_prompts),
        )

    def _fit(self, stage: StageDecoding) -> None:
        try:
            self._fitter.add(_rewards_of(list(stage.collected.values())))
        except ValueError as error:
            reason = str(error).rstrip(".")
            raise RewardError(
                f"the rewards of the pilot's drafts give no threshold: {reason}. Hint: check the "
                "rewards of unfinished answers, and the reward's floor"
            ) from error
        self._on_stage()

    def _continue(self, drafts: PrefixDrafts) -> Rollout:
        """Judge the drafts of a prefix under the threshold that was fitted to them."""
        rollout = drafts.rollout.fork()
        index = rollout.prompt_index
        self._costs.setdefault(index, Counter()).update(drafts.rollout.costs)
        self._rollouts[index] = rollout
        use_schedule(rollout, schedule_of(self._fitter, len(rollout.segments)))
        for candidate, outcome in zip(drafts.candidates, drafts.outcomes, strict=True):
            if isinstance(outcome, RewardError):
                rollout.fail(outcome)
                raise outcome
            draw = judge(rollout, candidate, outcome)
            rollout.record(draw, outcome)
            if draw.attempt.verdict == "accepted":
                rollout.keep(candidate, "accepted", draw.attempt)
                return rollout
            if len(rollout.draws) >= rollout.max_attempts:
                apply_on_exhausted(rollout)
                return rollout
        return rollout

    def _result(self, index: int) -> StarsResult:
        """Return an answer with the total costs of its parts."""
        rollout = self._rollouts[index]
        for name, amount in self._costs.get(index, Counter()).items():
            rollout.count(**{name: amount})
        return rollout.result()


def schedule_of(
    fitter: Fitter, stage: int, *, segment_len: int = 1, **about: Any
) -> CalibratedSchedule:
    """Return the schedule with all stages up to `stage`."""
    assert fitter.beta is not None
    return CalibratedSchedule(
        stages=tuple(fitter.lines[: stage + 1]),
        terminals=tuple(fitter.terminals[: stage + 1]),
        draw_limits=fitter.draw_limits(stage),
        beta=fitter.beta,
        max_attempts=fitter.max_attempts,
        segment_len=segment_len,
        **about,
    )


def use_schedule(rollout: Rollout, schedule: CalibratedSchedule) -> None:
    """Set the schedule of a rollout, but keep its segment length."""
    if rollout.align.schedule is not schedule:
        own = {"segment_len": rollout.align.segment_len, "beta": schedule.beta}
        rollout.align = rollout.align.replace(schedule=schedule, **own)


def opening_schedule() -> LinearSchedule:
    """Return a schedule that requests RM(x, ""); it is replaced before any segment is judged."""
    return LinearSchedule(target=0, initial_weight=0)


def _take_prompt_reward(rollout: Rollout, outcome: RewardOutcome | None) -> None:
    """Set RM(x, ""), if the reward model can score an empty answer; otherwise leave it unset."""
    if isinstance(outcome, Score) and outcome.eligible:
        rollout.prompt_reward = rollout.prefix_reward = outcome.value
    rollout.count(num_reward_calls=1)


def _rewards_of(stage: Sequence[PrefixDrafts]) -> StageDrafts:
    """Return the rewards of a stage's drafts, one row per prefix."""
    width = max(len(drafts.candidates) for drafts in stage)  # a prefix has fewer if a draft failed
    rewards = np.full((len(stage), width), np.nan)
    ends_text = np.zeros((len(stage), width), dtype=bool)
    for row, drafts in enumerate(stage):
        count = len(drafts.candidates)
        rewards[row, :count] = [_value(outcome) for outcome in drafts.outcomes]
        ends_text[row, :count] = [item.finish_reason == "stop" for item in drafts.candidates]
    prefix_rewards = np.array([drafts.prefix_reward for drafts in stage], dtype=float)
    return StageDrafts(prefix_rewards, rewards, ends_text)


def _value(outcome: RewardOutcome) -> float:
    return outcome.value if isinstance(outcome, Score) and outcome.eligible else np.nan
