"""One runtime for all callers: shared steps, cancellation, limits, back-pressure."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any

import pytest

from stars_engine import (
    AlignParams,
    ConfigError,
    EngineParams,
    NoSchedule,
    QueueFullError,
    SamplingParams,
    StarsConfig,
    StarsEngine,
)
from stars_engine.runtime.models import Models
from tests.support.engines import LONG, NEVER, SHORT, idle, wait_until, with_reward


def test_a_model_that_cannot_be_interrupted_keeps_no_other_engine_from_ending() -> None:
    """At exit, all engines give up what they draft."""

    class Model:
        def interrupt(self) -> None:
            raise RuntimeError("a fault")

    models = Models(lambda: None)
    models.interrupt()  # there is no model
    models.model = Model()
    models.interrupt()


# --- steps ---


@pytest.mark.slow
def test_concurrent_calls_share_steps(engine: StarsEngine) -> None:
    prompts = [f"Film number {index}" for index in range(32)]
    before = engine.stats().num_steps
    sampling = SHORT.replace(max_tokens=64)
    alone = [engine.generate(prompt, sampling=sampling)[0].text for prompt in prompts]
    sequential = engine.stats().num_steps - before
    futures = [engine.submit(prompt, sampling=sampling) for prompt in prompts]
    together = [future.result()[0].text for future in futures]
    assert together == alone
    assert engine.stats().num_steps - before - sequential <= sequential / 8


def test_a_new_request_joins_the_next_step(engine: StarsEngine) -> None:
    stream = engine.stream("This movie", sampling=LONG, align=NEVER)
    wait_until(lambda: engine.stats().num_active == 1)
    assert engine.generate("The acting", sampling=SHORT)[0].text  # while the other goes on
    assert engine.stats().num_active == 1
    stream.close()
    wait_until(lambda: idle(engine))


@pytest.mark.slow
def test_segment_lengths_take_turns(engine: StarsEngine) -> None:
    aligns = [AlignParams(schedule=NoSchedule(), segment_len=size) for size in (3, 5, 16, 5)]
    prompts = ["The", "plot", "was", "thin"]
    samplings = [SamplingParams(seed=index, max_tokens=9 + 4 * index) for index in range(4)]
    together = engine.generate(prompts, sampling=samplings, align=aligns)
    for prompt, sampling, align, result in zip(prompts, samplings, aligns, together, strict=True):
        [alone] = engine.generate(prompt, sampling=sampling, align=align)
        assert alone.token_ids == result.token_ids
        assert [len(s.token_ids) for s in alone.segments[:-1]] == [align.segment_len] * (
            len(alone.segments) - 1
        )


@pytest.mark.slow
def test_a_step_has_at_most_max_rows(engine: StarsEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    draft = engine.model.draft

    def spy(requests: Sequence[Any]) -> Any:
        seen.append(len(requests))
        return draft(requests)

    monkeypatch.setattr(engine.model, "draft", spy)
    config = StarsConfig(engine=EngineParams(max_rows=6), align=engine.config.align)
    with StarsEngine(config, model=engine.model, reward=engine.reward) as mine:
        sampling = SHORT.replace(n=7)
        align = engine.config.align.replace(num_candidates=20)
        few = mine.generate("The", sampling=sampling, align=align)
    assert max(seen) <= 6
    many = engine.generate("The", sampling=sampling, align=align)
    assert [result.text for result in few] == [result.text for result in many]


def test_settings_one_per_prompt_are_checked(engine: StarsEngine) -> None:
    with pytest.raises(ConfigError, match="2 settings for 1 prompts"):
        engine.generate("a", sampling=[SHORT, SHORT])
    with pytest.raises(ConfigError, match="sampling: dict is not allowed"):
        engine.generate("a", sampling={"seed": 1})
    with pytest.raises(ConfigError, match="align: SamplingParams is not allowed"):
        engine.generate("a", align=SHORT)


# --- ending early ---


def test_closing_a_stream_ends_its_request_within_a_step(engine: StarsEngine) -> None:
    stream = engine.stream("This movie", sampling=LONG, align=NEVER)
    wait_until(lambda: engine.stats().num_active == 1)
    stream.close()
    num_steps = engine.stats().num_steps
    wait_until(lambda: idle(engine))
    assert engine.stats().num_steps <= num_steps + 1
    assert list(stream) == []


def test_a_cancelled_stream_gives_its_result(engine: StarsEngine) -> None:
    align = AlignParams(schedule={"kind": "per_segment", "values": [-99, 1e9]}, segment_len=4)
    stream = engine.stream("This movie", sampling=LONG, align=align.replace(max_attempts=10_000))
    first = next(stream)
    stream.cancel()
    *_, last = stream
    assert last.result.finish_reason == "cancelled"
    assert last.result.text.startswith(first.text)
    assert last.result.usage.num_kept_tokens == 4


def test_future_cancel_and_interrupted_wait(engine: StarsEngine) -> None:
    cancelled_before = engine.stats().num_cancelled
    future = engine.submit(["a", "b"], sampling=LONG, align=NEVER)
    wait_until(lambda: engine.stats().num_active == 2)
    assert future.cancel()
    with pytest.raises(CancelledError):
        future.result()
    wait_until(lambda: idle(engine))
    assert engine.stats().num_cancelled == cancelled_before + 2


async def test_task_cancel_and_async_break(engine: StarsEngine) -> None:
    task = asyncio.create_task(engine.agenerate("a", sampling=LONG, align=NEVER))
    await asyncio.to_thread(wait_until, lambda: engine.stats().num_active == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    everything = AlignParams(schedule=NoSchedule(), segment_len=4)
    async for event in engine.astream("a", sampling=LONG, align=everything):
        assert event.segment is not None
        break
    stream = engine.astream("a", sampling=LONG, align=everything)
    await anext(stream)
    await stream.aclose()
    await asyncio.to_thread(wait_until, lambda: idle(engine))


@pytest.mark.slow
def test_deadlines_end_wherever_the_request_stands(engine: StarsEngine, busy: StarsEngine) -> None:
    hurried = NEVER.replace(deadline_s=0.3)
    first = busy.submit("in progress", sampling=LONG, align=hurried)
    second = busy.submit("in the queue", sampling=LONG, align=hurried)
    for future in (first, second):
        assert future.result(timeout=10)[0].finish_reason == "deadline"
    release = threading.Event()
    with with_reward(engine, lambda p, c: release.wait(120) and 1.0, timeout_s=None) as mine:
        align = AlignParams(schedule=NoSchedule(), deadline_s=0.3)
        [result] = mine.generate("its reward hangs", sampling=SHORT, align=align)
        assert result.finish_reason == "deadline"
        assert not release.is_set()
        release.set()


def test_a_deadline_ends_a_waiting_call(busy: StarsEngine) -> None:
    futures = [busy.submit("a", sampling=LONG) for _ in range(3)]
    wait_until(lambda: busy.stats().num_waiting == 2)
    hurried = NEVER.replace(deadline_s=0.3)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(busy.generate, ["b"] * 2, sampling=SHORT, align=hurried)
        results = future.result(timeout=20)
    assert [result.finish_reason for result in results] == ["deadline"] * 2
    assert [result.seed for result in results] == [3, 3]
    assert busy.stats().num_in_line == 0
    for future in futures:
        future.cancel()
    wait_until(lambda: idle(busy))


@pytest.mark.parametrize("seconds", [float("inf"), 1e10])
def test_infinite_timeouts_are_allowed(engine: StarsEngine, seconds: float) -> None:
    align = AlignParams(schedule=NoSchedule(), deadline_s=seconds)
    params = EngineParams(keep_alive_s=seconds)

    def slow(prompt: str, completion: str) -> float:
        time.sleep(0.1)
        return 1.0

    with with_reward(engine, slow, params, timeout_s=seconds) as mine:
        [result] = mine.generate("a", sampling=SHORT, align=align)
        assert result.finish_reason == "length"


# --- back-pressure ---


def test_a_full_queue_raises_or_waits(busy: StarsEngine) -> None:
    first = busy.submit("in progress", sampling=LONG)
    wait_until(lambda: busy.stats().num_active == 1)
    waiting = [busy.submit("in the queue", sampling=LONG) for _ in range(2)]
    impatient = StarsEngine.__new__(StarsEngine)  # another handle on the same runtime
    impatient.__dict__ |= busy.__dict__
    impatient.config = busy.config.replace(engine=busy.config.engine.replace(on_full="raise"))
    with pytest.raises(QueueFullError, match="max_waiting is 2"):
        impatient.generate("no room")
    entered = threading.Event()

    def patient() -> None:
        busy.submit("in line", sampling=LONG).cancel()
        entered.set()

    thread = threading.Thread(target=patient)
    thread.start()
    assert not entered.wait(0.2)
    assert busy.stats().num_in_line == 1
    waiting[0].cancel()
    assert entered.wait(10)
    thread.join()
    for future in (first, *waiting):
        future.cancel()
    wait_until(lambda: idle(busy))


@pytest.mark.slow
def test_a_call_larger_than_the_queue_is_admitted_in_parts(busy: StarsEngine) -> None:
    everything = AlignParams(schedule=NoSchedule())
    assert len(busy.generate(["a"] * 5, sampling=SHORT, align=everything)) == 5


@pytest.mark.slow
def test_a_single_prompt_is_admitted_between_those_of_a_large_call(engine: StarsEngine) -> None:
    params = EngineParams(max_active=1, max_waiting=2)
    config = StarsConfig(engine=params, align=engine.config.align)
    with StarsEngine(config, model=engine.model, reward=engine.reward) as mine:
        order: list[str] = []

        def ask(name: str, count: int) -> None:
            assert len(mine.generate([name] * count, sampling=SHORT)) == count
            order.append(name)

        with ThreadPoolExecutor(3) as pool:
            large = [pool.submit(ask, f"large {index}", 20) for index in range(2)]
            wait_until(lambda: mine.stats().num_in_line > 30)
            small = pool.submit(ask, "small", 1)
            for future in (small, *large):
                future.result(timeout=60)
        assert order[0] == "small"
        assert idle(mine)


@pytest.mark.slow
def test_callers_take_turns(engine: StarsEngine) -> None:
    config = StarsConfig(engine=EngineParams(max_active=2), align=engine.config.align)
    with StarsEngine(config, model=engine.model, reward=engine.reward) as mine:
        order: list[str] = []
        large = mine.submit(["many"] * 40, sampling=SHORT)
        large.add_done_callback(lambda _: order.append("large"))
        small = mine.submit("one", sampling=SHORT)
        small.add_done_callback(lambda _: order.append("small"))
        assert len(large.result()) == 40
        wait_until(lambda: len(order) == 2)
        assert order == ["small", "large"]
