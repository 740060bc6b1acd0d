"""Single cases of the loop: each ending, each limit, each way a reward can fail."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import count

import pytest

from stars_engine import (
    AlignmentError,
    AlignParams,
    ConstantSchedule,
    GenerationError,
    LinearSchedule,
    PerSegmentSchedule,
    RewardError,
    SamplingParams,
    StarsResult,
    StarsWarning,
)
from stars_engine.algorithm.noise import CounterNoise
from stars_engine.algorithm.rollout import Rollout
from stars_engine.backends.base import Draft
from stars_engine.core.offline import best_of_n, stars
from stars_engine.schedules import FunctionSchedule, Progress
from stars_engine.testing import TableReward, TabularModel
from stars_engine.types import RewardInput
from tests.support.rollouts import make_rollout


class FixedOutputModel(TabularModel):
    """Writes the same tokens in every draft, or one script per attempt."""

    def __init__(self, pieces: Sequence[str], *scripts: Sequence[int], end_id: int | None = None):
        super().__init__(pieces, lambda _: [1.0 / len(pieces)] * len(pieces), end_id=end_id)
        self._scripts = scripts
        self.num_drafts = 0

    def draft(self, requests: Sequence) -> list[Draft]:
        drafts = []
        for request in requests:
            done = request.num_completion_tokens
            script = self._scripts[min(self.num_drafts, len(self._scripts) - 1)]
            self.num_drafts += 1
            ids = list(script[done : done + len(request.uniforms)])
            if self.end_id in ids:
                ids = ids[: ids.index(self.end_id) + 1]
            drafts.append(Draft(tuple(ids)))
        return drafts


class RecordingReward:
    """Records what it scores."""

    def __init__(self, value: float = 0.0) -> None:
        self.inputs: list[RewardInput] = []
        self.value = value

    def score(self, inputs: Sequence[RewardInput]) -> list[float]:
        self.inputs += inputs
        return [self.value] * len(inputs)


def run(rollout: Rollout, model: TabularModel, reward: object) -> StarsResult:
    events = list(stars([rollout], model, reward))
    result = events[-1].result
    assert result is not None
    assert "".join(event.text for event in events) == result.text  # nothing is taken back
    assert "".join(segment.text for segment in result.segments) == result.text
    return result


def settings(segment_len: int = 2, value: float = 0.0, **more: object) -> AlignParams:
    schedule = more.pop("schedule", ConstantSchedule(value=value))
    return AlignParams(schedule=schedule, segment_len=segment_len, num_candidates=1, **more)


LETTERS = ["a", "b", "\n", "c", "<end>"]
ALWAYS = {"temperature": 1.0, "top_k": None}


def test_a_stop_string_across_segments_is_never_emitted() -> None:
    model = FixedOutputModel(LETTERS, [0, 2, 2, 1, 0, 0])  # a \n | \n b | a a
    reward = RecordingReward()
    sampling = SamplingParams(max_tokens=6, stop=["\n\n"], **ALWAYS)
    rollout = make_rollout(align=settings(), sampling=sampling)
    events = list(stars([rollout], model, reward))
    assert [event.text for event in events] == ["a", ""]
    result = events[-1].result
    assert (result.text, result.finish_reason) == ("a", "stop")
    assert result.token_ids == (0, 2, 2)  # up to what completed the stop string
    assert [item.text for item in reward.inputs] == ["a\n", "a"]
    assert reward.inputs[-1].token_ids == (0,)


def test_a_partial_stop_string_is_emitted_if_it_is_not_completed() -> None:
    model = FixedOutputModel(LETTERS, [0, 2, 1, 0])
    sampling = SamplingParams(max_tokens=4, stop="\n\n", **ALWAYS)
    result = run(make_rollout(align=settings(), sampling=sampling), model, RecordingReward())
    assert (result.text, result.finish_reason) == ("a\nba", "length")
    assert [segment.text for segment in result.segments] == ["a", "\nba"]


def test_max_tokens_not_a_multiple_of_segment_len() -> None:
    model = FixedOutputModel(LETTERS, [0] * 7)
    result = run(
        make_rollout(align=settings(3), sampling=SamplingParams(max_tokens=7, **ALWAYS)),
        model,
        RecordingReward(),
    )
    assert [len(segment.token_ids) for segment in result.segments] == [3, 3, 1]
    assert (result.finish_reason, result.usage.num_kept_tokens) == ("length", 7)


@pytest.mark.parametrize(
    ("terminal", "expected"), [("schedule", 0.25), ("target", 1.0), (0.625, 0.625)]
)
def test_reward_rules_for_an_end_of_text(terminal: object, expected: float) -> None:
    model = FixedOutputModel(LETTERS, [0, 4], end_id=4)
    schedule = LinearSchedule(initial=0.0, target=1.0, ramp_tokens=8)
    align = settings(4, schedule=schedule, terminal=terminal, max_attempts=1)
    reward = RecordingReward(5.0)
    sampling = SamplingParams(max_tokens=8, **ALWAYS)
    result = run(make_rollout(align=align, sampling=sampling), model, reward)
    assert (result.text, result.finish_reason, result.token_ids) == ("a", "stop", (0, 4))
    assert result.segments[0].threshold == expected
    assert reward.inputs[0].finished
    assert reward.inputs[0].token_ids == (0,)  # end of text is no part of the answer


def test_reward_rules_apply_to_the_token_limit() -> None:
    schedule = PerSegmentSchedule(values=[0.0, 0.5, 2.0])
    align = settings(2, schedule=schedule, terminal="target")
    sampling = SamplingParams(max_tokens=4, **ALWAYS)
    result = run(
        make_rollout(align=align, sampling=sampling),
        FixedOutputModel(LETTERS, [0] * 4),
        RecordingReward(9),
    )
    assert [segment.threshold for segment in result.segments] == [0.0, 2.0]


@pytest.mark.parametrize("forced", [False, True])
def test_a_schedule_gets_the_reward_of_the_prefix(*, forced: bool) -> None:
    """RM(x, "") before the first segment, then the reward of what was kept."""
    seen: list[Progress] = []

    def note(progress: Progress) -> float:
        seen.append(progress)
        return math.inf if forced else -math.inf

    schedule = FunctionSchedule(function=note, uses_prompt_reward=True)
    align = settings(1, schedule=schedule, max_attempts=2)
    sampling = SamplingParams(max_tokens=3, **ALWAYS)
    rewards = {"": 7.0, "a": 3.0, "b": 5.0, "ab": 2.0, "bb": 4.0, "ba": 1.0}
    model = FixedOutputModel(LETTERS, [0, 0, 0], [1, 1, 1], [1, 1, 1], [1, 0, 0], [1, 1, 1])
    run(make_rollout(align=align, sampling=sampling), model, TableReward(rewards))
    prefixes = [progress.prefix_reward for progress in seen]
    # Forced: "b" is the better of "a" and "b", "bb" of "bb" and "ba".
    assert prefixes == ([7.0, 7.0, 5.0, 5.0, 4.0, 4.0] if forced else [7.0, 3.0, 2.0])
    assert {progress.prompt_reward for progress in seen} == {7.0}


# --- when attempts run out ---

SCRIPTS = ([0, 0], [1, 1], [3, 3])  # rewards -3, -1, -2
LOW = TableReward({"aa": -3.0, "bb": -1.0, "cc": -2.0})


def exhausted(on_exhausted: str, reward: object = LOW, **more: object) -> Rollout:
    align = settings(2, max_attempts=3, on_exhausted=on_exhausted, **more)
    rollout = make_rollout(align=align, sampling=SamplingParams(max_tokens=2, **ALWAYS))
    for _ in stars([rollout], FixedOutputModel(LETTERS, *SCRIPTS), reward):
        pass
    return rollout


@pytest.mark.parametrize(("rule", "text"), [("best", "bb"), ("last", "cc")])
def test_forced_segments_are_flagged(rule: str, text: str) -> None:
    result = exhausted(rule).result()
    assert result.text == text
    [segment] = result.segments
    assert segment.forced
    assert [a.verdict for a in segment.attempts].count("forced") == 1
    assert (result.usage.num_forced, result.usage.num_attempts) == (1, 3)
    assert result.usage.num_accepted == 0


def test_best_takes_the_first_of_equal_rewards() -> None:
    equal = TableReward({}, default=-1.0)
    assert exhausted("best", equal).result().text == "aa"


def test_best_works_under_a_huge_threshold() -> None:
    """In floating point all three would be as far below it, and the first would be taken."""
    huge = ConstantSchedule(value=1e300)
    assert exhausted("best", schedule=huge).result().text == "bb"


def test_stop_ends_before_the_segment() -> None:
    result = exhausted("stop").result()
    assert (result.text, result.finish_reason, result.segments) == ("", "rejected", ())
    assert [attempt.reward for attempt in result.abandoned_attempts] == [-3, -1, -2]


def test_fallback_appends_its_text() -> None:
    result = exhausted("fallback", fallback_text="No.").result()
    assert (result.text, result.finish_reason, result.reward) == ("No.", "fallback", None)
    assert result.segments[0].verdict == "fallback"


def test_raise_carries_the_partial_result() -> None:
    rollout = exhausted("raise")
    assert isinstance(rollout.error, AlignmentError)
    assert rollout.error.result == rollout.result()
    assert rollout.error.result.finish_reason == "rejected"


# --- rewards that fail ---


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_rewards_reject_and_are_never_forced(bad: float) -> None:
    reward = TableReward({"aa": bad, "bb": bad, "cc": -5.0})
    for rule in ("best", "last"):
        result = exhausted(rule, reward).result()
        assert (result.text, result.usage.num_ineligible) == ("cc", 2)


@pytest.mark.parametrize("rule", ["best", "last"])
def test_an_answer_with_only_vetoes_ends_like_stop(rule: str) -> None:
    reward = TableReward({}, default=1.0, vetoed=frozenset({"aa", "bb", "cc"}))
    result = exhausted(rule, reward).result()
    assert (result.text, result.finish_reason, result.usage.num_ineligible) == ("", "rejected", 3)


def test_a_reward_that_raises_ends_its_request_alone() -> None:
    class Raising(RecordingReward):
        def score(self, inputs: Sequence[RewardInput]) -> list[float]:
            if any(item.text == "aab" for item in inputs):
                raise ZeroDivisionError("by b")
            return [1.0] * len(inputs)

    sampling = SamplingParams(max_tokens=4, **ALWAYS)
    model = TabularModel(
        LETTERS, lambda ids: [0, 0, 0, 1.0, 0] if len(ids) else [0.5, 0, 0, 0.5, 0]
    )
    rollouts = [
        make_rollout(align=settings(1), sampling=sampling, sample_index=i) for i in range(8)
    ]
    failing = TabularModel(
        LETTERS, lambda ids: [0, 1.0, 0, 0, 0] if len(ids) == 2 else [1.0, 0, 0, 0, 0]
    )
    bad = make_rollout(align=settings(1), sampling=sampling)
    for _ in stars([bad], failing, Raising()):
        pass
    assert isinstance(bad.error, RewardError)
    assert isinstance(bad.error.__cause__, ZeroDivisionError)
    assert "Raising" in str(bad.error)
    assert bad.error.result.text == "aa"  # what was accepted is not lost
    assert bad.error.result.finish_reason == "error"
    for _ in stars(rollouts, model, Raising()):
        pass
    assert all(rollout.error is None for rollout in rollouts)


def test_one_failing_request_of_a_batch_fails_alone() -> None:
    class Picky(RecordingReward):
        def score(self, inputs: Sequence[RewardInput]) -> list[float]:
            if any(item.text.startswith("a") for item in inputs):
                raise ValueError("no a")
            return [1.0] * len(inputs)

    model = TabularModel(LETTERS, lambda ids: [0.5, 0, 0, 0.5, 0])
    sampling = SamplingParams(max_tokens=1, **ALWAYS)
    rollouts = [
        make_rollout(align=settings(1), sampling=sampling, sample_index=i) for i in range(12)
    ]
    for _ in stars(rollouts, model, Picky()):
        pass
    failed = [rollout.error is not None for rollout in rollouts]
    assert 0 < sum(failed) < 12
    assert [r.text for r in rollouts if r.error is None] == ["c"] * (12 - sum(failed))


def test_an_error_after_the_accepted_candidate_is_ignored() -> None:
    class SecondFails(RecordingReward):
        def score(self, inputs: Sequence[RewardInput]) -> list[float]:
            if len(inputs) > 1 or inputs[0].text == "bb":
                raise ValueError("b")
            return [1.0]

    align = AlignParams(schedule=ConstantSchedule(value=0.0), segment_len=2, num_candidates=2)
    rollout = make_rollout(align=align, sampling=SamplingParams(max_tokens=2, **ALWAYS))
    result = run(rollout, FixedOutputModel(LETTERS, [0, 0], [1, 1]), SecondFails())
    assert (result.text, result.usage.num_attempts) == ("aa", 1)
    assert (result.usage.num_surplus_tokens, result.usage.num_surplus_rewards) == (2, 1)


@pytest.mark.parametrize("m", [1, 2, 3, 4])
@pytest.mark.parametrize("fails_at", [0, 2])
@pytest.mark.parametrize("accepted_at", [1, 9])
def test_a_failing_draft_counts_in_its_turn(m: int, fails_at: int, accepted_at: int) -> None:
    """Neither the rollout's outcome nor another rollout depends on how many are drafted at once."""

    class Failing(FixedOutputModel):
        def draft(self, requests: Sequence) -> list[Draft | GenerationError]:
            return [
                GenerationError("no token") if request.uniforms[0] == fails_at else Draft((0, 0))
                for request in requests
            ]

    class Attempts(CounterNoise):
        def token_uniforms(self, *, position: int, attempt: int, count: int) -> list[float]:
            return [float(attempt)] * count

    class OneGood:
        num_scored = 0

        def score(self, inputs: Sequence[RewardInput]) -> list[float]:
            return [1.0 if self.accepts(item) else -1.0 for item in inputs]

        def accepts(self, item: RewardInput) -> bool:
            self.num_scored += 1
            return self.num_scored == accepted_at + 1

    align = settings(2, max_attempts=4, on_exhausted="stop").replace(num_candidates=m)
    sampling = SamplingParams(max_tokens=2, **ALWAYS)
    noise = Attempts(seed=0, prompt_ids=[1], sample_index=0)
    rollout = make_rollout(align=align, sampling=sampling, noise=noise)
    events = list(stars([rollout], Failing(LETTERS), OneGood()))
    result = events[-1].result
    if accepted_at < fails_at:
        assert (result.text, result.finish_reason, rollout.error) == ("aa", "length", None)
    else:
        assert isinstance(rollout.error, GenerationError)
        assert (result.text, result.finish_reason) == ("", "error")
        assert rollout.error.result == result
        assert len(result.abandoned_attempts) == result.usage.num_attempts == fails_at


# --- bounds ---


def test_temperature_0_draws_once_and_warns() -> None:
    align = settings(2, value=1.0, max_attempts=5)
    rollout = make_rollout(align=align, sampling=SamplingParams(max_tokens=2, temperature=0))
    model = FixedOutputModel(LETTERS, [0, 0])
    with pytest.warns(StarsWarning, match="temperature is 0"):
        result = run(rollout, model, RecordingReward(-1.0))
    assert (model.num_drafts, result.segments[0].verdict) == (1, "forced")


@pytest.mark.parametrize("m", [1, 2, 8])
@pytest.mark.parametrize(("budget", "kept", "attempts"), [(1, 0, 0), (7, 2, 3), (8, 2, 4)])
def test_the_token_budget_is_never_exceeded(m: int, budget: int, kept: int, attempts: int) -> None:
    # Segment 0 is accepted at once, segment 1 never.
    align = settings(
        2, schedule=PerSegmentSchedule(values=[-9, 9]), max_drafted_tokens=budget
    ).replace(num_candidates=m)
    rollout = make_rollout(align=align, sampling=SamplingParams(max_tokens=4, **ALWAYS))
    result = run(rollout, FixedOutputModel(LETTERS, [0] * 4), RecordingReward())
    assert result.finish_reason == "budget"
    assert (result.usage.num_kept_tokens, result.usage.num_attempts) == (kept, attempts)
    assert result.usage.num_drafted_tokens <= budget
    assert len(result.abandoned_attempts) == max(0, attempts - 1)


@pytest.mark.parametrize(
    ("budget", "reason", "drafted"), [(3, "budget", 0), (11, "budget", 6), (12, "length", 12)]
)
def test_samples_of_best_of_n_share_the_budget(budget: int, reason: str, drafted: int) -> None:
    """Three samples of 4 tokens, drafted 2 at a time."""
    rollout = make_rollout(
        align=settings(2, max_drafted_tokens=budget),
        sampling=SamplingParams(max_tokens=4, **ALWAYS),
    )
    [event] = best_of_n([rollout], FixedOutputModel(LETTERS, [0] * 4), RecordingReward(), n=3)
    assert event.result.finish_reason == reason
    assert event.result.usage.num_drafted_tokens == drafted <= budget
    assert (event.result.reward is None) == (reason == "budget")


def test_best_of_n_says_rejected_where_samples_were_scored() -> None:
    rollout = make_rollout(align=settings(2), sampling=SamplingParams(max_tokens=2, **ALWAYS))
    [event] = best_of_n(
        [rollout], FixedOutputModel(LETTERS, [0] * 2), RecordingReward(math.nan), n=2
    )
    assert event.result.finish_reason == "rejected"


def test_a_deadline_ends_with_the_accepted_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count(time.monotonic())  # one step a second
    monkeypatch.setattr("stars_engine.core.request.time.monotonic", lambda: next(clock))
    align = settings(2, deadline_s=1.5)
    rollout = make_rollout(align=align, sampling=SamplingParams(max_tokens=90, **ALWAYS))
    result = run(rollout, FixedOutputModel(LETTERS, [0] * 90), RecordingReward())
    assert result.finish_reason == "deadline"
    assert result.text == "aaaa"


def test_rejected_text_is_recorded_only_on_request() -> None:
    assert {a.text for a in exhausted("best").result().segments[0].attempts} == {None}
    attempts = exhausted("best", keep_rejected_text=True).result().segments[0].attempts
    assert [attempt.text for attempt in attempts] == ["aa", "bb", "cc"]


def test_prompt_reward_starts_the_ramp_and_must_be_finite() -> None:
    align = settings(2, schedule=LinearSchedule(target=2.0, initial_weight=0.25))
    sampling = SamplingParams(max_tokens=4, **ALWAYS)
    reward = TableReward({"": -2.0}, default=9.0)
    result = run(
        make_rollout(align=align, sampling=sampling), FixedOutputModel(LETTERS, [0] * 4), reward
    )
    # r0 = 0.75 * -2 + 0.25 * 2 = -1
    assert [segment.threshold for segment in result.segments] == [0.5, 2.0]
    rollout = make_rollout(align=align, sampling=sampling)
    for _ in stars([rollout], FixedOutputModel(LETTERS, [0] * 4), TableReward({"": math.nan})):
        pass
    assert "initial=" in str(rollout.error)
