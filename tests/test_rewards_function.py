"""Python callables as rewards."""

from __future__ import annotations

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
from stars_engine.rewards.base import Score, score_each
from stars_engine.rewards.function import FunctionRewardModel
from stars_engine.testing import check_reward_model
from stars_engine.types import Chat, RewardInput, RewardPrompt


def politeness(prompt: str, completion: str) -> float:
    return float(completion.count("please"))


def politeness_of_all(prompts: list[str], completions: list[str]) -> list[float]:
    return [politeness(*pair) for pair in zip(prompts, completions, strict=True)]


ITEMS = [RewardInput(RewardPrompt("Say"), text, ()) for text in ("", " please", " please please")]


@pytest.mark.parametrize(
    "config",
    [
        FunctionReward(function=politeness),
        FunctionReward(function="tests.test_rewards_function:politeness"),
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
def test_callables_that_are_not_there(name: str) -> None:
    with pytest.raises(ModelLoadError, match=name):
        FunctionRewardModel(FunctionReward(function=name))


@pytest.mark.parametrize("value", [None, "high", [1.0, 2.0], {}])
def test_what_is_no_number_is_an_error(value: object) -> None:
    reward = FunctionRewardModel(FunctionReward(function=lambda _p, _c: value))
    outcomes = score_each(reward, ITEMS)
    assert all(isinstance(outcome, RewardError) for outcome in outcomes)
    assert "a reward is a number" in str(outcomes[0])


def test_a_batched_callable_of_the_wrong_length_is_an_error() -> None:
    reward = FunctionRewardModel(FunctionReward(function=lambda _p, _c: [1.0, 2.0], batched=True))
    assert all(isinstance(outcome, RewardError) for outcome in score_each(reward, ITEMS))


@pytest.mark.parametrize("batched", [True, False])
def test_the_wrong_number_of_rewards_is_not_hidden(*, batched: bool) -> None:
    """One by one the reward works: its author would never hear that batches do not."""

    class FirstOnly:
        def score(self, inputs: list[RewardInput]) -> list[float]:
            return [1.0]

    first = FunctionReward(function=lambda _p, texts: [1.0], batched=True)
    reward = FunctionRewardModel(first) if batched else FirstOnly()
    outcomes = score_each(reward, ITEMS)
    assert all("1 rewards for 3 completions" in str(outcome) for outcome in outcomes)
    assert len({id(outcome) for outcome in outcomes}) == 3  # each gets a result of its own


def test_the_input_that_a_reward_leaves_out_fails_alone() -> None:
    class Skips:
        def score(self, inputs: list[RewardInput]) -> list[float]:
            return [1.0 for item in inputs if item.text]

    bad, *good = score_each(Skips(), ITEMS)
    assert isinstance(bad, RewardError)
    assert [score.value for score in good] == [1.0, 1.0]


@pytest.mark.parametrize("value", [None, "x", "1.5", []])
def test_a_score_holds_a_number(value: object) -> None:
    class Odd:
        def score(self, inputs: list[RewardInput]) -> list[Score]:
            return [Score(2.0 if item.text else value) for item in inputs]

    bad, *good = score_each(Odd(), ITEMS)
    assert isinstance(bad, RewardError)
    assert "a reward is a number" in str(bad)
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
