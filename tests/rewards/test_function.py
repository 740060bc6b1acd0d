"""Python callables as rewards."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import replace
from functools import partial

import pytest

from stars_engine import (
    AlignParams,
    FunctionReward,
    ModelLoadError,
    RewardError,
    SamplingParams,
    StarsConfig,
    StarsEngine,
)
from stars_engine.messages import Chat
from stars_engine.rewards.base import score_each
from stars_engine.rewards.function import FunctionRewardModel
from stars_engine.testing import check_reward_model
from stars_engine.types import RewardInput, RewardPrompt, Score


def politeness(prompt: str, completion: str) -> float:
    return float(completion.count("please"))


def politeness_of_all(prompts: list[str], completions: list[str]) -> list[float]:
    return [politeness(*pair) for pair in zip(prompts, completions, strict=True)]


ITEMS = [RewardInput(RewardPrompt("Say"), text, ()) for text in ("", " please", " please please")]


@pytest.mark.parametrize(
    "config",
    [
        FunctionReward(function=politeness),
        FunctionReward(function="tests.rewards.test_function:politeness"),
        FunctionReward(function=politeness_of_all, batched=True),
    ],
)
def test_callables(config: FunctionReward) -> None:
    reward = FunctionRewardModel(config)
    check_reward_model(reward, ITEMS)
    assert [score.value for score in reward.score(ITEMS)] == [0, 1, 2]


def test_a_floor_vetoes() -> None:
    reward = FunctionRewardModel(FunctionReward(function=politeness, floor=1.0))
    assert [score.vetoed for score in reward.score(ITEMS)] == [True, False, False]


@pytest.mark.parametrize("name", ["no_such_module:f", "math:no_such_name", "math:pi"])
def test_missing_callables(name: str) -> None:
    with pytest.raises(ModelLoadError, match=name):
        FunctionRewardModel(FunctionReward(function=name))


@pytest.mark.parametrize("value", [None, "high", [1.0, 2.0], {}])
def test_rewards_that_are_not_numbers_are_errors(value: object) -> None:
    reward = FunctionRewardModel(FunctionReward(function=lambda _p, _c: value))
    outcomes = score_each(reward, ITEMS)
    assert all(isinstance(outcome, RewardError) for outcome in outcomes)
    assert "a reward must be a number" in str(outcomes[0])


def test_a_batched_callable_of_the_wrong_length_is_an_error() -> None:
    reward = FunctionRewardModel(FunctionReward(function=lambda _p, _c: [1.0, 2.0], batched=True))
    assert all(isinstance(outcome, RewardError) for outcome in score_each(reward, ITEMS))


@pytest.mark.parametrize("batched", [True, False])
def test_a_wrong_number_of_rewards_is_an_error(*, batched: bool) -> None:
    """Called one by one the reward works, which would hide that batches fail."""

    class FirstOnly:
        def score(self, inputs: list[RewardInput]) -> list[float]:
            return [1.0]

    first = FunctionReward(function=lambda _p, texts: [1.0], batched=True)
    reward = FunctionRewardModel(first) if batched else FirstOnly()
    outcomes = score_each(reward, ITEMS)
    assert all("1 rewards for 3 completions" in str(outcome) for outcome in outcomes)
    assert len({id(outcome) for outcome in outcomes}) == 3  # each gets a result of its own


def test_an_input_without_a_reward_fails_alone() -> None:
    class Skips:
        def score(self, inputs: list[RewardInput]) -> list[float]:
            return [1.0 for item in inputs if item.text]

    bad, *good = score_each(Skips(), ITEMS)
    assert isinstance(bad, RewardError)
    assert [score.value for score in good] == [1.0, 1.0]


@pytest.mark.parametrize("value", [None, "x", "1.5", []])
def test_a_score_contains_a_number(value: object) -> None:
    class Odd:
        def score(self, inputs: list[RewardInput]) -> list[Score]:
            return [Score(2.0 if item.text else value) for item in inputs]

    bad, *good = score_each(Odd(), ITEMS)
    assert isinstance(bad, RewardError)
    assert "a reward must be a number" in str(bad)
    assert good == [Score(2.0), Score(2.0)]


# --- through the engine ---


def test_the_reward_sees_its_own_prompt(engine: StarsEngine) -> None:
    seen = []

    def spy(prompt: str, completion: str) -> float:
        seen.append(prompt)
        return 1.0

    config = StarsConfig(
        model="stars:embedded-lm",
        reward=spy,
        align=AlignParams(schedule={"kind": "constant", "value": 0.0}),
        sampling=SamplingParams(max_tokens=8),
    )
    mine = StarsEngine(config, model=engine.model)
    mine.generate("A long document. A question?", reward_prompt="A question?")
    assert set(seen) == {"A question?"}
    seen.clear()
    chat = Chat([{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}])
    mine.generate(["a", "b"], reward_prompt=[None, chat])
    assert set(seen) == {"a", "User: one\n\nAssistant: two"}
    with pytest.raises(ValueError, match="1 reward prompts for 2 prompts"):
        mine.generate(["a", "b"], reward_prompt=["x"])


def test_one_failing_request_among_others(engine: StarsEngine) -> None:
    def fussy(prompt: str, completion: str) -> float:
        if prompt == "bad":
            raise ValueError("not this one")
        return 1.0

    config = StarsConfig(
        model="stars:embedded-lm",
        reward=fussy,
        align=AlignParams(schedule={"kind": "constant", "value": 0.0}),
        sampling=SamplingParams(max_tokens=8, seed=1),
    )
    mine = StarsEngine(config, model=engine.model)
    good, bad, other = mine.generate(["good", "bad", "other"], return_exceptions=True)
    assert good.text
    assert other.text
    assert isinstance(bad, RewardError)
    assert bad.result.prompt_index == 1
    with pytest.raises(RewardError, match="fussy") as caught:
        mine.generate(["good", "bad"])
    assert any("return_exceptions" in note for note in caught.value.__notes__)
    events = []
    with pytest.raises(RewardError):
        events.extend(event for event in mine.stream(["good", "bad"]))
    assert "".join(e.text for e in events if e.prompt_index == 0) == good.text


# --- coroutines, inputs ---


async def slow_politeness(prompt: str, completion: str) -> float:
    await asyncio.sleep(0)
    return politeness(prompt, completion)


def returns_a_coroutine(prompt: str, completion: str) -> Awaitable[float]:
    return slow_politeness(prompt, completion)


class Client:
    """An asynchronous client of its own kind: bound to the event loop it was first used on."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None

    async def __call__(self, prompts: list[str], completions: list[str]) -> list[float]:
        self.loop = self.loop or asyncio.get_running_loop()
        assert self.loop is asyncio.get_running_loop()
        return politeness_of_all(prompts, completions)


def by_ids(item: RewardInput) -> float:
    return float(len(item.token_ids)) + item.finished


def by_ids_of_all(items: list[RewardInput]) -> list[float]:
    return [by_ids(item) for item in items]


@pytest.mark.parametrize(
    "config",
    [
        FunctionReward(function=slow_politeness),
        FunctionReward(function=partial(slow_politeness)),
        FunctionReward(function=returns_a_coroutine),
        FunctionReward(function=Client(), batched=True),
        FunctionReward(function="tests.rewards.test_function:slow_politeness"),
    ],
    ids=["coroutine function", "partial", "returned", "async object", "by name"],
)
def test_coroutines(config: FunctionReward) -> None:
    reward = FunctionRewardModel(config)
    check_reward_model(reward, ITEMS)
    assert [score.value for score in reward.score(ITEMS)] == [0, 1, 2]
    reward.end_calls()


async def test_coroutines_within_a_running_loop() -> None:
    """A notebook has one; the reward has its own."""
    reward = FunctionRewardModel(FunctionReward(function=slow_politeness))
    assert [score.value for score in reward.score(ITEMS)] == [0, 1, 2]
    reward.end_calls()


@pytest.mark.parametrize("batched", [False, True])
def test_rewards_with_the_whole_input(*, batched: bool) -> None:
    function = by_ids_of_all if batched else by_ids
    reward = FunctionRewardModel(FunctionReward(function=function, by="input", batched=batched))
    items = [replace(ITEMS[0], token_ids=(1, 2), finished=True), replace(ITEMS[1], token_ids=(5,))]
    check_reward_model(reward, items)
    assert [score.value for score in reward.score(items)] == [3, 1]


def test_a_coroutine_that_takes_too_long_is_cancelled() -> None:
    cancelled = []

    async def hangs(prompt: str, completion: str) -> float:
        try:
            await asyncio.sleep(1e6)
        except asyncio.CancelledError:
            cancelled.append(completion)
            raise
        return 0.0

    reward = FunctionRewardModel(FunctionReward(function=hangs, timeout_s=0.01))
    [outcome] = score_each(reward, ITEMS[:1])
    assert isinstance(outcome, RewardError)
    assert "the reward hangs took longer than 0.01 s" in str(outcome)
    assert "timeout_s" in str(outcome)
    assert cancelled == [""]
    reward.end_calls()


def test_a_timeout_raised_by_the_reward_is_a_failure() -> None:
    async def gives_up(prompt: str, completion: str) -> float:
        raise TimeoutError("the server did not answer")

    reward = FunctionRewardModel(FunctionReward(function=gives_up))
    [outcome] = score_each(reward, ITEMS[:1])
    assert "failed: TimeoutError: the server did not answer" in str(outcome)
    reward.end_calls()


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("stars-reward")}


@pytest.mark.parametrize("on_failure", ["raise", "reject"])
def test_hanging_coroutines_leave_no_thread_behind(engine: StarsEngine, on_failure: str) -> None:
    async def hangs(prompt: str, completion: str) -> float:
        await asyncio.sleep(1e6 if "hang" in prompt else 0)
        return 1.0

    before = threads()
    config = StarsConfig(
        model="stars:embedded-lm",
        reward=FunctionReward(function=hangs, timeout_s=0.5, on_failure=on_failure),
        align=AlignParams(schedule={"kind": "constant", "value": 0.0}, max_attempts=2),
        sampling=SamplingParams(max_tokens=8, seed=1),
    )
    with StarsEngine(config, model=engine.model) as mine:
        good, bad = mine.generate(["good", "hang"], return_exceptions=True)
        assert good.text
        if on_failure == "raise":
            assert isinstance(bad, RewardError)
        else:
            assert bad.finish_reason == "rejected"
            assert bad.usage.num_reward_failures == 2
    for thread in threads() - before:
        thread.join(30.0)
        assert not thread.is_alive(), thread.name


# --- the examples ---


def values_of(config: FunctionReward, *texts: str, finished: bool = False) -> list[float]:
    items = [RewardInput(RewardPrompt("A review:"), text, (), finished) for text in texts]
    reward = FunctionRewardModel(config)
    check_reward_model(reward, items)
    return [score.value for score in reward.score(items)]


def test_example_rewards() -> None:
    good, bad = values_of(
        FunctionReward(function="examples.reward_functions:sentiment"),
        "A wonderful, touching film.",
        "An awful, stupid mess.",
    )
    assert good > 0.3 > -0.3 > bad
    fine, number = values_of(
        FunctionReward(function="examples.reward_functions:no_phone_number"),
        "It is 90 minutes long, made in 1987.",
        "Call +49 30 1234567!",
    )
    assert (fine, number) == (0.0, -math.inf)
    assert values_of(
        FunctionReward(function="examples.reward_functions:brevity"), "word " * 40, "word " * 43
    ) == [0.0, -3.0]


DOCUMENTS = [
    '{"title": "Größe \\u00e9\\n", "stars": [4, -0.5e+3, 0, true, null], "by": {}, "x": []}',
    "[[], [1.25, [false]], {}]",
    ' {"a" : 1 , "b" : [ ] } ',
    "-12.5e-3",
    '"a \\"quoted\\" word"',
]
NO_JSON = [
    "{]",
    "[1 2",
    "[,",
    '{"a"]',
    "{1",
    "01",
    "tru1",
    '{"a":}',
    "[1,]",
    '"\\x',
    "1 2",
    "- 1",
    "}",
]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_incomplete_json_is_not_punished(document: str) -> None:
    json.loads(document)
    config = FunctionReward(function="examples.reward_functions:json_validity", by="input")
    beginnings = [document[:size] for size in range(len(document) + 1)]
    assert set(values_of(config, *beginnings)) == {1.0}
    [whole] = values_of(config, document, finished=True)
    assert whole == 1.0
    ended = values_of(config, *beginnings, finished=True)
    for text, value in zip(beginnings, ended, strict=True):
        with suppress(ValueError):
            json.loads(text)
            assert value == 1.0
            continue
        assert value == 0.0


def test_text_that_cannot_become_json_is_punished() -> None:
    config = FunctionReward(function="examples.reward_functions:json_validity", by="input")
    assert set(values_of(config, *NO_JSON)) == {0.0}
