"""Rewards that fail, hang or return invalid values fail their own requests only."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from stars_engine import (
    AlignParams,
    ClassifierReward,
    ConstantSchedule,
    FunctionReward,
    LinearSchedule,
    RewardError,
    SamplingParams,
    SegmentEvent,
    StarsConfig,
    StarsEngine,
    StarsResult,
)
from stars_engine.core.offline import stars
from stars_engine.rewards.base import score_each
from stars_engine.rewards.classifier import ClassifierRewardModel
from stars_engine.rewards.failures import MAX_WAIT_S, FailurePolicy, RetryPolicy
from stars_engine.rewards.function import FunctionRewardModel
from stars_engine.testing import TabularModel
from stars_engine.types import RewardInput, RewardPrompt, Score
from tests.support.engines import wait_until
from tests.support.rollouts import make_rollout

ANY = AlignParams(
    schedule=ConstantSchedule(value=0.0), segment_len=4, max_attempts=3, num_candidates=3
)
SAMPLING = SamplingParams(max_tokens=24, seed=1)
PROMPTS = ["The plot", "bad film", "The music"]


class RecordingFunction:
    """A function reward that records its calls, and misbehaves in a given way about bad films."""

    __name__ = "recording_function"

    def __init__(self, misbehave: Callable[[int], Any]) -> None:
        self._misbehave = misbehave
        self._lock = threading.Lock()
        self.num_bad = 0
        self.answered: set[tuple[str, str]] = set()

    def __call__(self, prompt: str, completion: str) -> Any:
        if prompt.startswith("bad"):
            with self._lock:
                self.num_bad += 1
                count = self.num_bad
            value = self._misbehave(count)
        else:
            value = 1.0
        with self._lock:
            self.answered.add((prompt, completion))
        return value


def fails_on(*calls: int) -> Callable[[int], float]:
    def misbehave(call: int) -> float:
        if call in calls:
            raise OSError(f"call {call}: no answer")
        return 1.0

    return misbehave


def run(
    engine: StarsEngine, function: Any, align: AlignParams = ANY, **more: Any
) -> tuple[list[StarsResult | Exception], StarsEngine]:
    """The outcomes of three prompts, each segment of which must have been scored before."""
    config = StarsConfig(
        model="stars:embedded-lm",
        reward=FunctionReward(function=function, **more),
        align=align,
        sampling=SAMPLING,
    )
    with StarsEngine(config, model=engine.model) as mine:
        outcomes = mine.generate(PROMPTS, return_exceptions=True)
        if isinstance(function, RecordingFunction):
            texts = dict.fromkeys(PROMPTS, "")
            events: list[SegmentEvent] = []
            try:
                events.extend(mine.stream(PROMPTS))
            except RewardError:
                assert any(isinstance(outcome, RewardError) for outcome in outcomes)
            for event in events:
                if event.segment is not None:
                    prompt = PROMPTS[event.prompt_index]
                    texts[prompt] += event.text
                    assert (prompt, texts[prompt]) in function.answered, "emitted unscored"
    return outcomes, mine


def check_others(outcomes: Sequence[StarsResult | Exception]) -> None:
    for index in (0, 2):
        result = outcomes[index]
        assert isinstance(result, StarsResult)
        assert result.finish_reason in ("stop", "length")
        assert result.text
        assert result.usage.num_reward_failures == 0


# --- each policy ---


def test_a_third_call_that_fails_ends_its_request(engine: StarsEngine) -> None:
    outcomes, _ = run(engine, RecordingFunction(fails_on(3)), ANY.replace(num_candidates=1))
    check_others(outcomes)
    error = outcomes[1]
    assert isinstance(error, RewardError)
    assert "the reward recording_function failed: OSError: call 3: no answer" in str(error)
    assert "Hint: fix the reward model" in str(error)
    assert isinstance(error.__cause__, OSError)
    assert len(error.result.segments) == 2
    assert error.result.finish_reason == "error"


def test_a_third_call_that_fails_rejects_its_candidate(
    engine: StarsEngine, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="stars_engine"):
        outcomes, mine = run(
            engine,
            RecordingFunction(fails_on(3, 4)),
            ANY.replace(num_candidates=1),
            on_failure="reject",
        )
    check_others(outcomes)
    result = outcomes[1]
    assert isinstance(result, StarsResult)
    assert result.finish_reason in ("stop", "length")
    usage = result.usage
    assert usage.num_reward_failures == usage.num_ineligible == 2
    failed = result.segments[2].attempts[:2]
    assert [attempt.verdict for attempt in failed] == ["rejected", "rejected"]
    assert not any(attempt.eligible for attempt in failed)
    assert all(math.isnan(attempt.reward) for attempt in failed)
    assert mine.stats().num_reward_failures == 2
    warnings = [record for record in caplog.records if "function failed" in record.message]
    assert len(warnings) == 1
    assert "OSError: call 3" in warnings[0].message


def test_a_third_call_that_fails_is_retried(engine: StarsEngine) -> None:
    function = RecordingFunction(fails_on(3, 4))
    outcomes, _ = run(
        engine,
        function,
        ANY.replace(num_candidates=1),
        on_failure="retry",
        retry_wait_s=0.0,
    )
    check_others(outcomes)
    plain, _ = run(engine, RecordingFunction(fails_on()), ANY.replace(num_candidates=1))
    assert isinstance(outcomes[1], StarsResult)
    assert outcomes[1].token_ids == plain[1].token_ids  # as if nothing had happened
    assert outcomes[1].usage.num_reward_failures == 0


def test_retries_end(engine: StarsEngine) -> None:
    outcomes, _ = run(
        engine,
        RecordingFunction(fails_on(*range(3, 100))),
        ANY.replace(num_candidates=1),
        on_failure="retry",
        retry_wait_s=0.0,
    )
    check_others(outcomes)
    assert isinstance(outcomes[1], RewardError)
    assert "the reward recording_function failed 3 times: OSError: call 5" in str(outcomes[1])


def test_failures_never_force_a_candidate(engine: StarsEngine) -> None:
    outcomes, _ = run(engine, RecordingFunction(fails_on(*range(3, 1000))), on_failure="reject")
    check_others(outcomes)
    result = outcomes[1]
    assert isinstance(result, StarsResult)
    assert result.finish_reason == "rejected"
    assert result.usage.num_forced == 0
    assert len(result.abandoned_attempts) == 3


# --- hanging ---


@pytest.mark.parametrize("on_failure", ["raise", "reject", "retry"])
def test_a_call_that_hangs(engine: StarsEngine, on_failure: str) -> None:
    release = threading.Event()

    def hangs(call: int) -> float:
        if call == 3:
            release.wait(60)
        return 1.0

    function = RecordingFunction(hangs)
    config = StarsConfig(
        model="stars:embedded-lm",
        reward=FunctionReward(function=function, timeout_s=0.5, on_failure=on_failure),
        align=ANY.replace(num_candidates=1),
        sampling=SAMPLING,
    )
    with StarsEngine(config, model=engine.model) as mine:
        outcomes = mine.generate(PROMPTS, return_exceptions=True)
        release.set()
    check_others(outcomes)
    if on_failure == "raise":
        assert "the reward recording_function took longer than 0.5 s" in str(outcomes[1])
        assert "timeout_s" in str(outcomes[1])
    else:
        assert outcomes[1].finish_reason in ("stop", "length")
        assert outcomes[1].usage.num_reward_failures == (on_failure == "reject")


def test_a_reward_that_always_hangs_is_retried_a_limited_number_of_times(
    engine: StarsEngine,
) -> None:
    release = threading.Event()
    function = RecordingFunction(lambda _: float(release.wait(60)))
    config = StarsConfig(
        model="stars:embedded-lm",
        reward=FunctionReward(function=function, timeout_s=0.05, on_failure="retry", max_retries=3),
        align=ANY.replace(num_candidates=1),
        sampling=SAMPLING,
    )
    with StarsEngine(config, model=engine.model) as mine:
        [outcome] = mine.generate(["bad"], return_exceptions=True)
        wait_until(lambda: function.num_bad >= 4)
        assert function.num_bad == 4
        release.set()
    assert "took longer than 0.05 s 4 times" in str(outcome)


def test_failing_and_hanging_are_counted_together(engine: StarsEngine) -> None:
    release = threading.Event()

    def misbehaves(call: int) -> float:
        if call == 1:
            raise OSError("once")
        return float(release.wait(60))

    function = RecordingFunction(misbehaves)
    config = StarsConfig(
        model="stars:embedded-lm",
        reward=FunctionReward(
            function=function, timeout_s=0.05, on_failure="retry", max_retries=2, retry_wait_s=0.0
        ),
        align=ANY.replace(num_candidates=1),
        sampling=SAMPLING,
    )
    with StarsEngine(config, model=engine.model) as mine:
        [outcome] = mine.generate(["bad"], return_exceptions=True)
        wait_until(lambda: function.num_bad >= 3)
        assert function.num_bad == 3
        release.set()
    assert isinstance(outcome, RewardError)


def test_closing_ends_the_wait_for_another_call(engine: StarsEngine) -> None:
    asked = threading.Event()

    def fails(prompt: str, completion: str) -> float:
        asked.set()
        raise OSError("no answer")

    config = StarsConfig(
        model="stars:embedded-lm",
        reward=FunctionReward(
            function=fails, on_failure="retry", retry_wait_s=1e9, max_concurrency=1
        ),
        align=ANY,
        sampling=SAMPLING,
    )
    before = set(threading.enumerate())
    mine = StarsEngine(config, model=engine.model)
    future = mine.submit(["bad"])
    assert asked.wait(20)
    mine.close()
    assert future.exception(20) is not None
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive(), thread.name


# --- what is returned ---


@pytest.mark.parametrize("on_failure", ["raise", "reject"])
def test_a_batch_of_the_wrong_length(engine: StarsEngine, on_failure: str) -> None:
    def first_only(prompts: list[str], completions: list[str]) -> list[float]:
        return [1.0] if prompts[0].startswith("bad") else [1.0] * len(prompts)

    outcomes, _ = run(engine, first_only, batched=True, on_failure=on_failure)
    check_others(outcomes)
    if on_failure == "raise":
        assert "first_only failed: WrongCountError" in str(outcomes[1])
        assert "1 rewards for 3 completions" in str(outcomes[1])
    else:
        assert outcomes[1].finish_reason == "rejected"
        assert outcomes[1].usage.num_reward_failures == 3


@pytest.mark.slow
@pytest.mark.parametrize(("value", "floor"), [(math.nan, None), (-math.inf, None), (0.5, 0.9)])
def test_one_row_is_rejected_without_a_failure(
    engine: StarsEngine, value: float, floor: float | None
) -> None:
    """nan, minus infinity, or a reward below the floor, for the third candidate only."""
    function = RecordingFunction(lambda call: value if call == 3 else 1.0)
    outcomes, _ = run(engine, function, ANY.replace(num_candidates=1), floor=floor)
    check_others(outcomes)
    result = outcomes[1]
    assert isinstance(result, StarsResult)
    assert (result.usage.num_ineligible, result.usage.num_reward_failures) == (1, 0)
    first, second = result.segments[2].attempts
    assert (first.verdict, first.eligible) == ("rejected", False)
    assert (second.verdict, second.eligible) == ("accepted", True)


# --- models on the engine's thread ---


@pytest.mark.slow
@pytest.mark.parametrize("on_failure", ["raise", "reject", "retry"])
def test_a_model_that_fails(
    engine: StarsEngine, monkeypatch: pytest.MonkeyPatch, on_failure: str
) -> None:
    """Out of memory, for example. The call is repeated at once: there is no other work."""
    config = StarsConfig(
        reward=ClassifierReward(name_or_path="stars:embedded-reward", on_failure=on_failure),
        align=engine.config.align.replace(num_candidates=1, segment_len=8),
        sampling=SAMPLING,
    )
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("the engine's thread slept"))
    with StarsEngine(config, model=engine.model) as mine:
        [plain] = mine.generate(PROMPTS[0])
        score = ClassifierRewardModel.score
        calls = []

        def fails(self: Any, inputs: Sequence[RewardInput]) -> list[Score]:
            calls.append(len(inputs))
            if len(calls) == 3:
                raise RuntimeError("out of memory")
            return score(self, inputs)

        monkeypatch.setattr(ClassifierRewardModel, "score", fails)
        [outcome] = mine.generate(PROMPTS[0], return_exceptions=True)
    if on_failure == "raise":
        assert "stars:embedded-reward failed: RuntimeError: out of memory" in str(outcome)
    elif on_failure == "reject":
        assert outcome.usage.num_reward_failures == 1
    else:
        assert outcome.token_ids == plain.token_ids
        assert sum(calls) == plain.usage.num_reward_calls + 1


def test_the_prompt_alone_cannot_be_rejected(engine: StarsEngine) -> None:
    def fails(prompt: str, completion: str) -> float:
        if not completion:
            raise OSError("nothing to read")
        return 1.0

    align = ANY.replace(schedule=LinearSchedule(target=0.0, initial_weight=0.5))
    outcomes, _ = run(engine, fails, align, on_failure="reject")
    assert all(isinstance(outcome, RewardError) for outcome in outcomes)
    assert "Hint: fix the reward model, or use LinearSchedule(initial" in str(outcomes[0])


# --- without an engine ---


def test_policies_without_an_engine() -> None:
    """The loop over a reward directly: everything on one thread."""
    model = TabularModel("ab", lambda _: (0.5, 0.5))
    calls: list[str] = []

    def fails_once(prompt: str, completion: str) -> float:
        calls.append(completion)
        if len(calls) == 2:
            raise OSError("no answer")
        return 1.0

    def ending(num_candidates: int = 1, **more: Any) -> tuple[str | None, int]:
        calls.clear()
        schedule = ConstantSchedule(value=0.0)
        rollout = make_rollout(
            align=AlignParams(schedule=schedule, segment_len=1, num_candidates=num_candidates),
            sampling=SamplingParams(max_tokens=4, temperature=1.0, top_k=None),
        )
        reward = FunctionRewardModel(FunctionReward(function=fails_once, **more))
        for _ in stars([rollout], model, reward):
            pass
        return rollout.finish_reason, rollout.costs.get("num_reward_failures", 0)

    # A call for several candidates that fails is repeated for each; here this helps.
    assert ending(num_candidates=4) == ("length", 0)
    assert ending() == ("error", 0)
    assert ending(on_failure="reject") == ("length", 1)
    assert ending(on_failure="retry", retry_wait_s=0.0) == ("length", 0)


def test_waits_double_up_to_a_maximum() -> None:
    waits: list[float] = []

    def fails() -> float:
        raise OSError("no answer")

    policy = FailurePolicy("retry", max_retries=8, retry_wait_s=0.5)
    with pytest.raises(OSError, match="no answer"):
        policy.call(fails, RetryPolicy(sleep=waits.append))
    assert waits == [0.5, 1, 2, 4, 8, 16, MAX_WAIT_S, MAX_WAIT_S]


def test_no_retry_for_a_cancelled_request() -> None:
    calls: list[int] = []

    def fails(prompt: str, completion: str) -> float:
        calls.append(1)
        raise OSError("no answer")

    reward = FunctionRewardModel(FunctionReward(function=fails, on_failure="retry"))
    retry_policy = RetryPolicy(sleep=lambda _: None, is_wanted=lambda: len(calls) < 2)
    [outcome] = score_each(reward, [RewardInput(RewardPrompt("a"), "b", ())], retry_policy)
    assert isinstance(outcome, RewardError)
    assert len(calls) == 2
