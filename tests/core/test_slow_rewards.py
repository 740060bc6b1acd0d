"""Rewards that are slow, hang, fail or call back affect only their own requests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from stars_engine import (
    AlignParams,
    EngineParams,
    FunctionReward,
    NoSchedule,
    RewardError,
    StarsConfig,
    StarsEngine,
    TransformersModel,
)
from tests.support.engines import LONG, NEVER, SHORT, wait_until, with_reward
from tests.support.marks import slow_but_first


def test_a_slow_reward_delays_only_its_own_request(engine: StarsEngine) -> None:
    release = threading.Event()

    def slow(prompt: str, completion: str) -> float:
        assert prompt != "slow" or release.wait(60)
        return 1.0

    with with_reward(engine, slow, timeout_s=None) as mine:
        waiting = mine.submit("slow", sampling=SHORT)
        for index in range(3):
            mine.generate(f"quick {index}", sampling=SHORT)
        assert not waiting.done()
        release.set()
        assert waiting.result()[0].reward == 1.0


@pytest.mark.parametrize("batched", slow_but_first([False, True]))
def test_a_reward_that_hangs_fails_only_its_request(engine: StarsEngine, batched: bool) -> None:
    release = threading.Event()

    def hang(prompt: Any, completion: Any) -> Any:
        if "hang" in prompt:
            release.wait(30)
        return [1.0] * len(prompt) if batched else 1.0

    with with_reward(engine, hang, batched=batched, timeout_s=0.8, max_concurrency=2) as mine:
        prompts = ["hang"] * 3 + ["fine"] * 3  # more that hang than there are workers
        outcomes = mine.generate(prompts, sampling=SHORT, return_exceptions=True)
        assert [isinstance(outcome, RewardError) for outcome in outcomes] == [True] * 3 + [
            False
        ] * 3
        assert "took longer than 0.8 s" in str(outcomes[0])
        assert outcomes[0].result.finish_reason == "error"
        release.set()


def test_a_reward_of_the_wrong_shape_fails_only_its_request(engine: StarsEngine) -> None:
    def shapeless(prompts: list[str], completions: list[str]) -> list[float]:
        return [1.0] * (len(prompts) + (prompts[0] == "bad"))

    with with_reward(engine, shapeless, batched=True) as mine:
        good, bad = mine.generate(["good", "bad"], sampling=SHORT, return_exceptions=True)
        assert good.text
        assert isinstance(bad, RewardError)


@pytest.mark.slow
def test_a_hung_reward_is_abandoned_while_the_engine_is_busy() -> None:
    release = threading.Event()
    config = StarsConfig(
        model="stars:embedded-lm",
        reward=FunctionReward(function=lambda p, c: release.wait(30) and 1.0, timeout_s=0.3),
        align=AlignParams(schedule=NoSchedule()),
    )
    with StarsEngine.shared() as other, StarsEngine.shared(config) as mine:
        busy = other.submit("a", sampling=LONG, align=NEVER)
        wait_until(lambda: other.stats().num_steps > 0)
        with pytest.raises(RewardError, match="took longer"):
            mine.submit("its reward hangs", sampling=SHORT).result(timeout=20)
        assert not busy.done()
        release.set()
        busy.cancel()


def test_many_slow_rewards_leave_workers_for_other_requests(engine: StarsEngine) -> None:
    release = threading.Event()

    def slow(prompt: str, completion: str) -> float:
        if prompt == "slow":
            release.wait(30)
        return 1.0

    with with_reward(engine, slow, params=EngineParams(max_active=8)) as mine:
        waiting = [mine.submit("slow", sampling=SHORT) for _ in range(3)]
        wait_until(lambda: mine.stats().num_active == 3 and mine.stats().num_rows == 0)
        assert mine.submit("quick", sampling=SHORT).result(timeout=20)[0].reward == 1.0
        assert not any(future.done() for future in waiting)
        release.set()
        for future in waiting:
            future.result(timeout=20)


@pytest.mark.slow
def test_requests_that_wait_for_a_slow_reward_make_room(engine: StarsEngine) -> None:
    release = threading.Event()
    loaded: Any = engine.model
    model = TransformersModel(model=loaded.model, tokenizer=loaded.codec.tokenizer)

    def config_of(reward: Callable[..., Any]) -> StarsConfig:
        return StarsConfig(
            model=model,
            reward=FunctionReward(function=reward, timeout_s=None),
            align=AlignParams(schedule=NoSchedule(), segment_len=8),
            engine=EngineParams(max_active=2, max_waiting=4),
        )

    slow_config = config_of(lambda p, c: release.wait(30) and 1.0)
    quick_config = config_of(lambda p, c: 1.0)
    with StarsEngine.shared(slow_config) as slow, StarsEngine.shared(quick_config) as quick:
        waiting = slow.submit(["slow"] * 5, sampling=SHORT)
        wait_until(lambda: slow.stats().num_active == 2)
        assert quick.submit("quick", sampling=SHORT).result(timeout=20)[0].reward == 1.0
        assert slow.stats().num_active == 2  # its own places are all taken
        release.set()
        assert len(waiting.result(timeout=20)) == 5


@pytest.mark.slow
def test_a_reward_that_calls_its_engine_raises(engine: StarsEngine) -> None:
    handles: list[StarsEngine] = []

    def calls_back(prompt: str, completion: str) -> float:
        return float(len(handles[0].generate("inner", sampling=SHORT)[0].text))

    with with_reward(engine, calls_back, timeout_s=None) as mine:
        handles.append(mine)
        outcomes = mine.generate(["a"] * 9, sampling=SHORT, return_exceptions=True)
        assert all("could deadlock" in str(outcome) for outcome in outcomes)
        handles[0] = engine  # another runtime's
        assert mine.generate("a", sampling=SHORT)[0].reward > 0


@pytest.mark.slow
def test_an_early_acceptance_does_not_wait_for_surplus_rewards(engine: StarsEngine) -> None:
    release = threading.Event()
    with with_reward(engine, lambda prompt, completion: 1.0) as accepting:
        [expected] = accepting.generate("a", sampling=SHORT)
    # The first candidate of each segment; the rewards of all others wait for the end of the test.
    firsts = {expected.segments[0].text, expected.text}

    def first_is_quick(prompt: str, completion: str) -> float:
        assert completion in firsts or release.wait(120)
        return 1.0

    with with_reward(engine, first_is_quick, timeout_s=None) as mine:
        future = mine.submit("a", sampling=SHORT)
        try:
            [result] = future.result(timeout=60)
        finally:
            release.set()
    assert len(result.segments) == 2
    assert result.text == expected.text
    assert result.usage.num_attempts == 2
    assert result.usage.num_surplus_tokens > 0
