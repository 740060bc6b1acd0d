"""Decoding strategies, schedules and callbacks of callers that fail, hang or return odd values."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest

from stars_engine import (
    AlignParams,
    ConstantSchedule,
    EngineClosedError,
    FunctionSchedule,
    GenerationError,
    RequestError,
    SamplingParams,
    StarsConfig,
    StarsEngine,
)
from stars_engine.algorithm.stars import StarsDecoding
from stars_engine.algorithm.verification import NumDrafts
from stars_engine.core.request import Request, RequestQueue
from stars_engine.core.scheduler import Scheduler
from stars_engine.out_of_memory import is_out_of_memory
from stars_engine.problems import describe_error
from stars_engine.schedules import Progress
from stars_engine.testing import TableReward
from tests.support.engines import SHORT, idle, wait_until
from tests.support.marks import slow_but_each
from tests.support.rollouts import make_rollout

PROMPTS = ["The", "This movie was", "I had heard so much about it", "No"]
ALIGN = AlignParams(
    schedule=ConstantSchedule(value=1.0), segment_len=4, max_attempts=3, num_candidates=2
)


def exits(*_: object, **__: object) -> Any:
    raise SystemExit(3)


class Odd:
    """Everything that is asked of it raises."""

    def __getattribute__(self, name: str) -> Any:
        raise SystemExit(3)

    def __repr__(self) -> str:
        raise SystemExit(3)


FAULTS: dict[str, dict[str, Callable[..., Any]]] = {
    "num_drafts raises": {"num_drafts": exits},
    "num_drafts raises later": {"num_drafts": lambda r: exits() if r.segments else NumDrafts(1, 1)},
    "no drafts": {"num_drafts": lambda _: NumDrafts(0, 0)},
    "more than the most": {"num_drafts": lambda _: NumDrafts(3, 2)},
    "half a draft": {"num_drafts": lambda _: NumDrafts(0.5, 2)},  # type: ignore[arg-type]
    "no bounds": {"num_drafts": lambda _: None},
    "first_draft raises": {"first_draft": exits},
    "no first draft": {"first_draft": lambda _: "first"},
    "open raises": {"open": exits},
    "no verification": {"open": lambda *_: None},
    "odd verification": {"open": lambda *_: Odd()},
    "verify raises": {"verify": exits},
    "no event": {"verify": lambda _: "an event"},
    "odd event": {"verify": lambda _: Odd()},
    "end without an event": {"verify": lambda v: v.rollout.finish("stop") and None},
}


@pytest.fixture(scope="module")
def mine(engine: StarsEngine) -> StarsEngine:
    config = StarsConfig(align=ALIGN, sampling=SHORT)
    return StarsEngine(config, model=engine.model, reward=engine.reward)


@pytest.fixture(scope="module")
def alone(mine: StarsEngine) -> list[str]:
    return [mine.generate(prompt)[0].text for prompt in PROMPTS]


@pytest.mark.parametrize("fault", slow_but_each(3, FAULTS))
def test_a_strategy_that_fails_ends_its_request_only(
    mine: StarsEngine, alone: list[str], fault: str
) -> None:
    strategy = StarsDecoding()
    for name, method in FAULTS[fault].items():
        setattr(strategy, name, method)
    others = [mine.submit(prompt) for prompt in PROMPTS]
    with pytest.raises(GenerationError, match=r"failed: .*Hint:") as caught:
        mine.decode("a", strategy)
    assert not isinstance(caught.value, EngineClosedError)
    assert [future.result(60)[0].text for future in others] == alone
    wait_until(lambda: idle(mine))


def test_statistics_do_not_ask_a_strategy() -> None:
    """They are read by any thread, also in the middle of a step."""

    class Counts(StarsDecoding):
        num_asked = 0

        def num_drafts(self, rollout: Any) -> NumDrafts:
            self.num_asked += 1
            return super().num_drafts(rollout)

    strategy, scheduler = Counts(), Scheduler()
    request = Request(make_rollout(align=ALIGN, sampling=SHORT), TableReward({}), strategy)
    scheduler.add(RequestQueue.of([request]))
    assert scheduler.schedule() == [request]
    num_asked = strategy.num_asked
    assert scheduler.num_ready_rows == 2
    assert strategy.num_asked == num_asked


# --- errors ---


class Unspeakable(RuntimeError):  # noqa: N818 - its name is in the message
    """Its message cannot be read."""

    def __str__(self) -> str:
        raise SystemExit(3)


def test_errors_whose_message_cannot_be_read() -> None:
    error = Unspeakable()
    assert describe_error(error) == "Unspeakable"
    assert not is_out_of_memory(error)


class OwnError(RequestError):
    """An error of a caller that accepts no result."""

    def __setattr__(self, name: str, value: object) -> None:
        if value is not None:
            raise SystemError(name)
        super().__setattr__(name, value)


def test_an_error_that_several_requests_share_shows_each_its_own_text(mine: StarsEngine) -> None:
    shared = GenerationError("enough")

    class Stops(StarsDecoding):
        def verify(self, verification: Any) -> Any:
            if verification.rollout.segments:
                raise shared
            return super().verify(verification)

    wanted = {prompt: mine.generate(prompt, max_tokens=4)[0].text for prompt in PROMPTS}
    errors: dict[str, GenerationError] = {}

    def ask(prompt: str) -> None:
        with pytest.raises(GenerationError, match="enough") as caught:
            mine.decode(prompt, Stops())
        errors[prompt] = caught.value

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in PROMPTS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {prompt: error.result.text for prompt, error in errors.items()} == wanted


def test_an_error_that_accepts_no_result(mine: StarsEngine) -> None:
    class Stops(StarsDecoding):
        def verify(self, verification: Any) -> Any:
            raise OwnError("mine")

    other = mine.submit("a")
    with pytest.raises(GenerationError, match="OwnError: mine") as caught:
        mine.decode("a", Stops())
    assert caught.value.result is not None
    assert other.result(60)[0].text


# --- functions as schedules ---


class Hidden:
    """A callable without a name, whose `repr` exits."""

    def __call__(self, progress: Progress) -> float:
        return 1.0

    def __getattr__(self, name: str) -> Any:
        raise SystemExit(3)

    def __repr__(self) -> str:
        raise SystemExit(3)


def test_a_schedule_whose_repr_fails_is_used(mine: StarsEngine, alone: list[str]) -> None:
    schedule = FunctionSchedule(function=Hidden())
    [result] = mine.generate(PROMPTS[0], align=ALIGN.replace(schedule=schedule))
    assert result.text == alone[0]
    assert result.schedule_hash == schedule.content_hash()


def test_the_hash_of_a_schedule_does_not_read_its_arguments() -> None:
    def threshold(_: list[int], progress: Progress) -> float:
        return 1.0

    schedules = [
        FunctionSchedule(function=functools.partial(threshold, [number] * 10**6))
        for number in range(2)
    ]
    shown = [schedule.model_dump_json() for schedule in schedules]
    assert max(map(len, shown)) < 200
    assert len(set(shown)) == 2


def test_a_bound_method_is_one_schedule() -> None:
    class Rising:
        def at(self, progress: Progress) -> float:
            return float(progress.num_tokens)

    rising, other = Rising(), Rising()
    hashes = [FunctionSchedule(function=each.at).content_hash() for each in (rising, rising, other)]
    assert hashes[0] == hashes[1] != hashes[2]


# --- callbacks ---


@pytest.mark.slow
def test_a_callback_that_blocks_delays_no_other_request(
    mine: StarsEngine, alone: list[str]
) -> None:
    entered, go_on = threading.Event(), threading.Event()
    order: list[str] = []

    def block(_: object) -> None:
        entered.set()
        assert go_on.wait(60)
        order.append("first")

    first = mine.submit(PROMPTS[0])
    first.add_done_callback(block)
    first.add_done_callback(lambda _: order.append("second"))
    first.add_done_callback(exits)
    first.add_done_callback(lambda _: order.append("last"))
    assert first.result(60)[0].text == alone[0]
    assert entered.wait(60)
    assert [mine.generate(prompt)[0].text for prompt in PROMPTS] == alone
    go_on.set()
    wait_until(lambda: len(order) == 3)
    assert order == ["first", "second", "last"]
    wait_until(lambda: "stars-callbacks" not in {each.name for each in threading.enumerate()})


def test_a_callback_of_a_future_that_is_done_runs_at_once(mine: StarsEngine) -> None:
    future = mine.submit("a", sampling=SamplingParams(max_tokens=4, seed=0))
    future.result(60)
    seen: list[object] = []
    future.add_done_callback(seen.append)
    assert seen == [future]
