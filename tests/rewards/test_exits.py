"""Exits and other errors in the parts of reward models, with eight other requests in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from stars_engine import (
    AlignParams,
    ConstantSchedule,
    ProcessReward,
    RewardError,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    StarsResult,
    ValueReward,
    YesNoReward,
)
from stars_engine.rewards.encoding import EncodedInput
from stars_engine.rewards.process import ProcessRewardModel
from stars_engine.rewards.value import ValueRewardModel
from stars_engine.rewards.yes_no import YesNoRewardModel
from stars_engine.types import RewardInput
from tests.support.value_heads import random_head

BAD = "A bad film"
GOOD = ["The", "This movie was", "I had heard so much about it", "No", "A", "It is", "My", "We"]
ALIGN = AlignParams(
    schedule=ConstantSchedule(value=-5.0), segment_len=4, max_attempts=3, num_candidates=2
)
SAMPLING = SamplingParams(seed=3, max_tokens=8)


class OddError(BaseException):
    """An exception outside `Exception`."""


ERRORS = [
    SystemExit(3),
    GeneratorExit(),
    KeyboardInterrupt(),
    asyncio.CancelledError(),
    OddError("odd"),
    RecursionError("too deep"),
    MemoryError("no memory"),
    StopIteration(1),
]


def process(model: Any) -> ProcessRewardModel:
    """Steps end with commas; the score is read at a full stop behind each."""
    config = ProcessReward(
        model=model.model,
        tokenizer=model.codec.tokenizer,
        step_separator=",",
        marker=".",
        head="tokens",
        positive=" the",
        negative=" a",
        template="{prompt}{completion}",
    )
    return ProcessRewardModel(config)


def yes_no(model: Any) -> YesNoRewardModel:
    config = YesNoReward(
        model=model.model,
        tokenizer=model.codec.tokenizer,
        template="{prompt}{completion}. It was",
        positive=" the",
        negative=" a",
    )
    return YesNoRewardModel(config)


@pytest.fixture(scope="module")
def rewards(engine: StarsEngine) -> dict[str, Any]:
    model: Any = engine.model
    head = ValueReward(head=random_head(model))
    return {
        "classifier": engine.reward,
        "process": process(model),
        "yes_no": yes_no(model),
        "value": ValueRewardModel(head, model),
    }


def is_bad(asked: Any, ids: list[int]) -> bool:
    """Whether an input, pieces of text or rows of tokens belong to the bad prompt."""
    if isinstance(asked, RewardInput):
        return asked.prompt.text == BAD
    found = False
    for each in asked:
        if isinstance(each, EncodedInput):
            starts = range(len(each.ids) - len(ids))
            found |= any(each.ids[start : start + len(ids)] == ids for start in starts)
        else:
            found |= BAD in each[0]
    return found


# By kind of reward: its parts as the object that has a method, and the name of the method.
PARTS: dict[str, list[tuple[Callable[[Any], Any], str]]] = {
    "classifier": [(lambda r: r._reader, "read"), (lambda r: r._incremental, "run")],
    "process": [
        (lambda r: r._reader, "read"),
        (lambda r: r._codec, "encode_pieces"),
        (lambda r: r._incremental, "run"),
    ],
    "yes_no": [
        (lambda r: r._reader, "read"),
        (lambda r: r._codec, "encode_pieces"),
        (lambda r: r._incremental, "run"),
    ],
    "value": [(lambda r: r, "_score")],
}
CASES = [(kind, number) for kind, parts in PARTS.items() for number in range(len(parts))]


@pytest.mark.parametrize(
    "error",
    [pytest.param(each, marks=[pytest.mark.slow] * (n > 0)) for n, each in enumerate(ERRORS)],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] * (case[1] > 0)) for case in CASES]
)
def test_a_part_of_a_reward_model_that_fails_ends_its_request_only(
    engine: StarsEngine,
    rewards: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    case: tuple[str, int],
    error: BaseException,
) -> None:
    kind, number = case
    reward = rewards[kind]
    find, name = PARTS[kind][number]
    part = find(reward)
    method = getattr(part, name)

    with StarsEngine(StarsConfig(align=ALIGN), model=engine.model, reward=reward) as mine:
        alone = [mine.generate(prompt, sampling=SAMPLING)[0].text for prompt in [BAD, *GOOD]]

        def fail(*args: Any, **kwargs: Any) -> Any:
            if is_bad(args[0], bad_ids):
                raise error
            return method(*args, **kwargs)

        bad_ids = engine.model.codec.encode_prompt(BAD)[:-1]  # the last may merge with more text
        with monkeypatch.context() as patch:
            patch.setattr(part, name, fail)
            futures = [
                mine.submit(prompt, sampling=SAMPLING, return_exceptions=True)
                for prompt in [BAD, *GOOD]
            ]
            [bad], *others = [future.result(60) for future in futures]
        assert isinstance(bad, RewardError)
        assert "Hint:" in str(bad)
        assert [type(each) for [each] in others] == [StarsResult] * len(GOOD)
        assert [each.text for [each] in others] == alone[1:]
        assert mine.generate(BAD, sampling=SAMPLING)[0].text == alone[0]
