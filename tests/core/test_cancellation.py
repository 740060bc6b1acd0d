"""Cancellation at any moment and from any thread: callers return, and no work continues."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import signal
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from stars_engine import (
    AlignParams,
    EngineClosedError,
    EngineParams,
    FunctionReward,
    ModelLoadError,
    NoSchedule,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    StarsError,
)
from tests.support.engines import LONG, NEVER, SHORT, idle, wait_until

EVERYTHING = AlignParams(schedule=NoSchedule(), segment_len=4)


def full(engine: StarsEngine) -> list[Any]:
    """Fill an engine with room for one request in progress and two in the queue."""
    futures = [engine.submit("a", sampling=LONG) for _ in range(3)]
    wait_until(lambda: engine.stats().num_active == 1 and engine.stats().num_waiting == 2)
    return futures


# --- futures ---


def test_waiters_of_a_cancelled_future_return(engine: StarsEngine) -> None:
    future = engine.submit("a", sampling=LONG, align=NEVER)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(concurrent.futures.wait, [future], timeout=20)
        wait_until(lambda: bool(future._waiters))
        assert future.cancel()
        assert future.cancel()
        assert waiting.result().done == {future}
    assert list(concurrent.futures.as_completed([future], timeout=5)) == [future]
    wait_until(lambda: idle(engine))


@pytest.mark.slow
async def test_a_cancelled_load_that_fails_raises_nowhere(engine: StarsEngine) -> None:
    config = StarsConfig(
        model="stars:embedded-lm",
        reward=FunctionReward(function="no_such_module:f"),
        align=EVERYTHING,
    )
    with StarsEngine.shared() as mine, StarsEngine.shared(config) as failing:
        innocent = mine.submit("a", sampling=LONG, align=NEVER)
        await asyncio.to_thread(wait_until, lambda: mine.stats().num_active == 1)
        release = threading.Event()
        mine._runtime._loop.post(lambda: release.wait(20))
        task = asyncio.create_task(failing.aload())
        await asyncio.sleep(0)  # the task has posted its load
        task.cancel()
        await asyncio.wait([task])
        release.set()
        with pytest.raises(ModelLoadError):
            await failing.aload()
        num_steps = mine.stats().num_steps
        await asyncio.to_thread(wait_until, lambda: mine.stats().num_steps > num_steps)
        assert not innocent.done()
        innocent.cancel()
        await asyncio.to_thread(mine.close)


def test_an_interrupted_submit_withdraws_its_request(busy: StarsEngine) -> None:
    futures = full(busy)
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.3, signal.pthread_kill, [main, signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        busy.submit("stands in line", sampling=LONG)
    timer.join()
    wait_until(lambda: busy.stats().num_in_line == 0)
    for future in futures:
        future.cancel()
    wait_until(lambda: idle(busy))
    assert busy.stats().num_cancelled == 4


# --- streams ---


async def test_closing_a_stream_ends_the_step_of_another_task(engine: StarsEngine) -> None:
    stream = engine.astream("a", sampling=LONG, align=NEVER)
    step = asyncio.create_task(anext(stream))
    await asyncio.to_thread(wait_until, lambda: engine.stats().num_active == 1)
    await stream.aclose()
    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(step, 10)
    await asyncio.to_thread(wait_until, lambda: idle(engine))


async def test_closing_a_stream_does_not_wait_for_a_load(engine: StarsEngine) -> None:
    loading, release = threading.Event(), threading.Event()

    def load(config: StarsConfig) -> Any:
        loading.set()
        assert release.wait(30)
        return engine.model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stars_engine.engine.handle._load_model", load)
        mine = StarsEngine(StarsConfig(align=EVERYTHING))
        stream = mine.astream("a", sampling=SHORT)
        step = asyncio.create_task(anext(stream))
        await asyncio.to_thread(loading.wait, 30)
        await stream.aclose()
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(step, 10)
        assert not release.is_set()
        release.set()
        await asyncio.to_thread(mine.close)


def test_closing_a_stream_ends_the_step_of_another_thread(engine: StarsEngine) -> None:
    stream = engine.stream("a", sampling=LONG, align=NEVER)
    with ThreadPoolExecutor(1) as pool:
        rest = pool.submit(list, stream)
        wait_until(stream._reader.locked)
        stream.close()
        assert rest.result(timeout=10) == []


def test_two_readers_of_one_stream_raise(engine: StarsEngine) -> None:
    stream = engine.stream("a", sampling=LONG, align=NEVER)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(list, stream)
        wait_until(stream._reader.locked)
        with pytest.raises(StarsError, match=r"two threads or tasks .* Hint"):
            next(stream)
        stream.cancel()
        [last] = first.result(timeout=10)
    assert last.result.finish_reason == "cancelled"


def test_a_stream_may_move_to_another_thread(engine: StarsEngine) -> None:
    stream = engine.stream("a", sampling=LONG.replace(max_tokens=12), align=EVERYTHING)
    texts = []
    for _ in range(3):
        with ThreadPoolExecutor(1) as pool:
            texts.append(pool.submit(next, stream).result().text)
    assert list(stream) == []
    [whole] = engine.generate("a", sampling=LONG.replace(max_tokens=12), align=EVERYTHING)
    assert "".join(texts) == whole.text


@pytest.mark.parametrize("when", ["before the first step", "right after it began", "in line"])
async def test_cancelling_at_any_time_gives_a_final_event(
    engine: StarsEngine, busy: StarsEngine, when: str
) -> None:
    futures = await asyncio.to_thread(full, busy) if when == "in line" else []
    mine = busy if when == "in line" else engine
    before = mine.stats()
    stream = mine.astream("a", sampling=LONG.replace(n=2), align=NEVER)
    if when == "before the first step":
        stream.cancel()
        events = [event async for event in stream]
        assert mine.stats().num_steps == before.num_steps
    else:
        step = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        if when == "in line":
            await asyncio.to_thread(wait_until, lambda: busy.stats().num_in_line > 0)
        stream.cancel()
        events = [await asyncio.wait_for(step, 10)]
        events += [event async for event in stream]
    assert [event.result.finish_reason for event in events if event.result] == ["cancelled"] * 2
    assert [event.sample_index for event in events if event.result] == [0, 1]
    assert mine.stats().num_cancelled == before.num_cancelled + 2
    for future in futures:
        future.cancel()
    await asyncio.to_thread(wait_until, lambda: idle(mine))


def test_cancel_before_the_first_step_loads_nothing() -> None:
    def load(config: StarsConfig) -> Any:
        raise AssertionError("nothing was to be loaded")

    async def main() -> Any:
        stream = mine.astream("a", sampling=SamplingParams(seed=5))
        stream.cancel()
        return [event async for event in stream]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stars_engine.engine.handle._load_model", load)
        with StarsEngine(StarsConfig(align=EVERYTHING)) as mine:
            [event] = asyncio.run(main())
    result = event.result
    assert (result.finish_reason, result.text, result.seed) == ("cancelled", "", 5)
    assert result.usage.num_prompt_tokens == 0  # nobody read it


# --- event loops that are gone ---


@pytest.mark.parametrize("streamed", [False, True])
def test_work_ends_with_its_event_loop(engine: StarsEngine, streamed: bool) -> None:
    async def consume() -> None:
        if streamed:
            async for _ in engine.astream("a", sampling=LONG, align=NEVER):
                pass
        else:
            await engine.agenerate("a", sampling=LONG, align=NEVER)

    loop = asyncio.new_event_loop()
    task = loop.create_task(consume())
    loop.run_until_complete(asyncio.sleep(0))
    wait_until(lambda: engine.stats().num_active == 1)
    loop.close()  # without cancelling the task
    wait_until(lambda: idle(engine), timeout_s=10)
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        del task
        gc.collect()


def test_a_waiting_call_ends_with_its_event_loop(busy: StarsEngine) -> None:
    futures = full(busy)
    loop = asyncio.new_event_loop()
    task = loop.create_task(busy.agenerate("a", sampling=LONG))
    loop.run_until_complete(asyncio.sleep(0))
    wait_until(lambda: busy.stats().num_in_line == 1)
    loop.close()
    wait_until(lambda: busy.stats().num_in_line == 0, timeout_s=10)
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        del task
        gc.collect()
    for future in futures:
        future.cancel()
    wait_until(lambda: idle(busy))


# --- handles that are closed meanwhile ---


def reward_threads(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if name in thread.name]


@pytest.mark.slow
def test_closing_an_engine_during_a_call_leaves_no_threads(engine: StarsEngine) -> None:
    def patient_reward(prompt: str, completion: str) -> float:
        time.sleep(0.05)
        return 1.0

    with StarsEngine.shared() as keeper:
        keeper.load()
        config = StarsConfig(
            model="stars:embedded-lm",
            reward=FunctionReward(function=patient_reward),
            align=EVERYTHING,
        )
        mine = StarsEngine.shared(config)
        future = mine.submit("a", sampling=SHORT)
        wait_until(lambda: bool(reward_threads("patient_reward")))
        mine.close()
        assert future.result(timeout=20)[0].reward == 1.0  # the runtime goes on for the keeper
        wait_until(lambda: not reward_threads("patient_reward"))
        assert keeper.generate("a", sampling=SHORT)[0].text


def test_counters_survive_closing(engine: StarsEngine) -> None:
    config = StarsConfig(align=NEVER, engine=EngineParams(max_active=1, max_waiting=1))
    mine = StarsEngine(config, model=engine.model, reward=engine.reward)
    futures = [mine.submit("a", sampling=LONG) for _ in range(2)]
    wait_until(lambda: mine.stats().num_steps > 0)
    mine.close()
    assert all(isinstance(future.exception(timeout=10), StarsError) for future in futures)
    stats = mine.stats()
    assert (stats.num_in_line, stats.num_waiting, stats.num_active) == (0, 0, 0)
    assert stats.num_steps > 0
    assert stats.num_loads == 1
    assert stats.num_failed >= 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_thread_is_detected(engine: StarsEngine) -> None:
    mine = StarsEngine(StarsConfig(align=EVERYTHING), model=engine.model, reward=engine.reward)
    began = threading.Event()

    def die() -> None:
        began.wait(20)
        raise RuntimeError("unforeseen")

    mine._runtime._loop.run = die  # type: ignore[method-assign]
    with ThreadPoolExecutor(8) as pool:
        before = [
            pool.submit(mine.generate, "a"),
            pool.submit(mine.load),
            pool.submit(lambda: list(mine.stream("a"))),
        ]
        wait_until(lambda: mine._runtime._loop._inbox.qsize() == len(before))
        began.set()
        for future in before:
            assert isinstance(future.exception(timeout=20), EngineClosedError)
        for call in (mine.generate, mine.submit, mine.stream):
            later = pool.submit(call, "a")
            assert isinstance(later.exception(timeout=20), EngineClosedError)
