"""Coroutines of rewards that exit, stop their event loop, or block it: others are not affected."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextvars import Context

import pytest

from stars_engine import FunctionReward, RewardError
from stars_engine.errors import RewardOutcome
from stars_engine.rewards.base import score_each
from stars_engine.rewards.event_loop import EventLoop, set_cancel
from stars_engine.rewards.failures import RewardTimeoutError
from stars_engine.rewards.function import FunctionRewardModel
from stars_engine.types import RewardInput, RewardPrompt, Score
from tests.support.engines import wait_until

EXITS = [SystemExit(3), KeyboardInterrupt("stop")]


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    loop = EventLoop("stars-reward-loop-test")
    yield loop
    loop.close()
    for thread in loop.threads:
        thread.join(30)


async def answer(value: float = 1.0) -> float:
    await asyncio.sleep(0)
    return value


async def raise_it(error: BaseException) -> float:
    await asyncio.sleep(0)
    raise error


async def raise_in_a_child(error: BaseException) -> float:
    results = await asyncio.gather(answer(), raise_it(error))
    return results[0]


@pytest.mark.parametrize("error", EXITS, ids=repr)
@pytest.mark.parametrize("raises", [raise_it, raise_in_a_child])
def test_an_exit_ends_only_its_own_call(
    loop: EventLoop,
    error: BaseException,
    raises: Callable[[BaseException], Awaitable[float]],
) -> None:
    waiting, released = threading.Event(), asyncio.Event()

    async def waits() -> float:
        waiting.set()
        await released.wait()
        return 2.0

    async def releases() -> float:
        released.set()
        return 3.0

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(loop.run, waits, timeout_s=None)
        assert waiting.wait(30)
        [thread] = loop.threads
        with pytest.raises(type(error)):
            loop.run(lambda: raises(error), timeout_s=None)
        assert loop.run(releases, timeout_s=None) == 3.0
        assert other.result(30) == 2.0
    assert loop.threads == [thread]


def test_a_loop_that_a_reward_stops_goes_on(loop: EventLoop) -> None:
    async def stops() -> float:
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0)
        return 1.0

    assert loop.run(stops, timeout_s=None) == 1.0
    assert loop.run(answer, timeout_s=None) == 1.0


def test_a_loop_that_has_ended_is_replaced_and_its_calls_are_made_again(loop: EventLoop) -> None:
    calls = []

    async def breaks() -> float:
        calls.append(asyncio.get_running_loop())
        if len(calls) == 1:
            calls[0]._run_once = None  # type: ignore[attr-defined]
            await asyncio.sleep(1e6)
        return float(len(calls))

    assert loop.run(breaks, timeout_s=None) == 2.0
    assert calls[0] is not calls[1]
    assert loop.run(answer, timeout_s=None) == 1.0


def test_a_call_that_blocks_the_loop_fails_alone(loop: EventLoop) -> None:
    blocking, released, num_calls = threading.Event(), threading.Event(), []

    async def blocks() -> float:
        blocking.set()
        released.wait(60)  # without `await`
        return 1.0

    async def behind() -> float:
        num_calls.append(1)
        return 2.0

    with ThreadPoolExecutor(5) as pool:
        bad = pool.submit(loop.run, blocks, timeout_s=0.2)
        assert blocking.wait(30)
        others = [pool.submit(loop.run, behind, timeout_s=t) for t in (0.01, 0.2, 50, None)]
        with pytest.raises(RewardTimeoutError):
            bad.result(30)
        assert [other.result(30) for other in others] == [2.0] * 4
        assert len(num_calls) == 4
        assert not released.is_set()
    released.set()


def test_a_call_that_is_not_needed_any_more_delays_no_other(loop: EventLoop) -> None:
    blocking, released, started = threading.Event(), threading.Event(), []
    cancels: list[Callable[[], object]] = []

    async def blocks() -> float:
        blocking.set()
        released.wait(60)  # without `await`
        return 1.0

    async def starts() -> float:
        started.append(1)
        return 1.0

    def run(call: Callable[[], Awaitable[float]]) -> float:
        set_cancel.set(cancels.append)
        result: float = loop.run(call, timeout_s=None)
        return result

    with ThreadPoolExecutor(3) as pool:
        bad = pool.submit(run, blocks)
        assert blocking.wait(30)
        unwanted = pool.submit(run, starts)
        wait_until(lambda: len(cancels) == 2)
        other = pool.submit(loop.run, answer, timeout_s=None)
        for cancel in cancels:
            cancel()
        for each in (bad, unwanted):
            assert isinstance(each.exception(30), CancelledError)
        assert other.result(30) == 1.0
        assert not released.is_set()
    blocked, *_ = loop.threads
    released.set()
    blocked.join(30)
    assert not started


def test_loops_that_stay_blocked_are_few(loop: EventLoop) -> None:
    released = threading.Event()

    async def blocks() -> float:
        released.wait(60)
        return 1.0

    with ThreadPoolExecutor(16) as pool:
        loops = [EventLoop("stars-reward-loop-test") for _ in range(2)]
        list(pool.map(lambda each: each.run(answer, timeout_s=None), loops))
    loop._blocked = [each._current for each in loops if each._current] * 8
    with pytest.raises(RuntimeError, match="16 event loops of this reward are blocked"):
        loop.run(blocks, timeout_s=0.01)
    released.set()
    loop._blocked = []
    for each in loops:
        each.close()


def item(text: str = "b") -> RewardInput:
    return RewardInput(RewardPrompt("a"), text, ())


@pytest.mark.parametrize("error", EXITS, ids=repr)
@pytest.mark.parametrize("is_async", [False, True])
def test_exits_are_retried_and_counted(error: BaseException, *, is_async: bool) -> None:
    calls: list[str] = []

    def fails(prompt: str, completion: str) -> float | Awaitable[float]:
        calls.append(completion)
        if (len(calls) % 4 and completion == "twice") or completion == "always":
            if is_async:
                return raise_it(error)
            raise error
        return answer(7.0) if is_async else 7.0

    reward = FunctionRewardModel(
        FunctionReward(function=fails, on_failure="retry", max_retries=3, retry_wait_s=0.0)
    )
    found = in_thread(lambda: score_each(reward, [item("twice")]))
    assert found == [Score(7.0)]
    assert calls == ["twice"] * 4
    calls.clear()
    [failed] = in_thread(lambda: score_each(reward, [item("always")]))
    assert isinstance(failed, RewardError)
    assert f"failed 4 times: {type(error).__name__}" in str(failed)
    assert calls == ["always"] * 4
    reward.end_calls()


def in_thread(work: Callable[[], list[RewardOutcome]]) -> list[RewardOutcome]:
    """Run on a worker thread, as the engine does: on the main thread Ctrl-C is the user's."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(60)


def cancel_all() -> None:
    for task in asyncio.all_tasks():
        task.cancel()


async def cancels_all() -> float:
    cancel_all()
    await asyncio.sleep(0)
    return 1.0


async def cancels_all_in_a_child() -> float:
    return (await asyncio.gather(cancels_all(), answer()))[0]


async def cancels_all_in_a_callback() -> float:
    asyncio.get_running_loop().call_soon(cancel_all)
    await asyncio.sleep(1e6)
    return 1.0


async def cancels_all_in_an_empty_context() -> float:
    Context().run(cancel_all)
    await asyncio.sleep(0)
    return 1.0


async def cancels_all_in_a_callback_with_an_empty_context() -> float:
    asyncio.get_running_loop().call_soon(cancel_all, context=Context())
    await asyncio.sleep(1e6)
    return 1.0


async def cancels_all_from_another_thread() -> float:
    loop, tasks = asyncio.get_running_loop(), asyncio.all_tasks()

    def cancel() -> None:
        for task in tasks:
            loop.call_soon_threadsafe(task.cancel)

    threading.Thread(target=cancel).start()
    await asyncio.sleep(1e6)
    return 1.0


@pytest.mark.parametrize(
    ("cancels", "num_calls"),
    [
        (cancels_all, 2),
        (cancels_all_in_a_child, 2),
        (cancels_all_in_a_callback, 2),
        (cancels_all_in_an_empty_context, 2),
        (cancels_all_in_a_callback_with_an_empty_context, 4),  # by nobody known: made again
        (cancels_all_from_another_thread, 4),
    ],
)
def test_a_call_that_cancels_all_tasks_fails_alone(
    loop: EventLoop, cancels: Callable[[], Awaitable[float]], num_calls: int
) -> None:
    waiting, released, calls = threading.Event(), asyncio.Event(), []

    async def waits(value: float) -> float:
        calls.append(value)
        if len(calls) == 2:
            waiting.set()
        await released.wait()
        return value

    async def waits_in_a_child() -> float:
        async with asyncio.TaskGroup() as group:
            return await group.create_task(waits(3.0))

    async def releases() -> float:
        released.set()
        return 4.0

    with ThreadPoolExecutor(2) as pool:
        others = [
            pool.submit(loop.run, lambda: waits(2.0), timeout_s=None),
            pool.submit(loop.run, waits_in_a_child, timeout_s=None),
        ]
        assert waiting.wait(30)
        with pytest.raises(CancelledError):
            run_once(loop, cancels)
        assert loop.run(releases, timeout_s=None) == 4.0
        assert [other.result(30) for other in others] == [2.0, 3.0]
    assert len(calls) == num_calls


def run_once(loop: EventLoop, call: Callable[[], Awaitable[float]]) -> float:
    """Await a call; if it is made again, it cancels itself."""
    calls = iter([call])

    async def cancels_itself() -> float:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return await answer()

    def next_call() -> Awaitable[float]:
        return next(calls, cancels_itself)()

    return loop.run(next_call, timeout_s=None)


@pytest.mark.parametrize(
    "cancels", [cancels_all_in_a_callback_with_an_empty_context, cancels_all_from_another_thread]
)
def test_a_call_that_cancels_all_tasks_again_and_again_fails_alone(
    loop: EventLoop, cancels: Callable[[], Awaitable[float]]
) -> None:
    released, calls = threading.Event(), []

    async def waits() -> float:
        calls.append(1)
        while not released.is_set():  # noqa: ASYNC110 - loops share no event of asyncio's
            await asyncio.sleep(0.001)
        return 2.0

    with ThreadPoolExecutor(8) as pool:
        others = [pool.submit(loop.run, waits, timeout_s=None) for _ in range(4)]
        bad = [pool.submit(loop.run, cancels, timeout_s=None) for _ in range(4)]
        assert all(isinstance(each.exception(60), CancelledError) for each in bad)
        released.set()
        assert [other.result(60) for other in others] == [2.0] * 4
    assert 4 < len(calls) <= 12
    [thread] = {thread for thread in loop.threads if thread.is_alive()}
    assert loop.run(thread_of_call, timeout_s=None) is thread


async def thread_of_call() -> threading.Thread:
    return threading.current_thread()


def test_a_call_that_is_alone_on_its_loop_can_block_or_break_it(loop: EventLoop) -> None:
    calls = []

    async def is_cancelled_and_then_blocks(released: threading.Event) -> float:
        calls.append(1)
        if len(calls) <= 2:
            return await cancels_all_from_another_thread()
        released.wait(60)
        return 1.0

    released = threading.Event()
    with pytest.raises(RewardTimeoutError):
        loop.run(lambda: is_cancelled_and_then_blocks(released), timeout_s=0.2)
    assert len(calls) == 3
    assert len(loop.threads) == 2
    released.set()
    assert loop.run(answer, timeout_s=None) == 1.0
    loop.close()
    for thread in loop.threads:
        thread.join(30)
    assert not loop.threads


def test_a_call_cannot_change_how_tasks_of_others_are_made(
    loop: EventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **__: object) -> asyncio.Task[float]:
        raise ValueError("no tasks today")

    async def breaks() -> float:
        asyncio.get_running_loop().set_task_factory(fails)
        return await answer()

    async def starts_tasks() -> float:
        return sum(await asyncio.gather(answer(), answer()))

    assert loop.run(breaks, timeout_s=None) == 1.0
    assert "tried to change how its event loop makes tasks" in caplog.text
    assert loop.run(starts_tasks, timeout_s=None) == 2.0


def test_a_call_can_cancel_its_own_tasks_and_those_of_calls_that_have_ended(
    loop: EventLoop,
) -> None:
    tasks: list[asyncio.Task[None]] = []

    async def starts() -> float:
        tasks.append(asyncio.ensure_future(asyncio.sleep(1e6)))
        return 1.0

    async def cancels() -> float:
        own = asyncio.ensure_future(asyncio.sleep(1e6))
        for task in (own, tasks[0]):
            task.cancel()
            await asyncio.wait([task])
        return float(own.cancelled() and tasks[0].cancelled())

    loop.run(starts, timeout_s=None)
    assert loop.run(cancels, timeout_s=None) == 1.0


def test_a_call_that_is_cancelled_again_and_again_fails(loop: EventLoop) -> None:
    calls = []

    async def is_cancelled() -> float:
        calls.append(1)
        return await cancels_all_from_another_thread()

    with pytest.raises(CancelledError):
        loop.run(is_cancelled, timeout_s=None)
    assert len(calls) == 3


@pytest.mark.slow
def test_several_calls_that_block_the_loop_fail_no_other() -> None:
    async def blocks() -> None:
        time.sleep(2)  # noqa: ASYNC251 - that is the fault

    async def waits() -> float:
        await asyncio.sleep(0.05)
        return 2.0

    loop = EventLoop("test")
    with ThreadPoolExecutor(12) as pool:
        good = [pool.submit(loop.run, waits, timeout_s=0.3) for _ in range(4)]
        bad = [pool.submit(loop.run, blocks, timeout_s=0.3) for _ in range(4)]
        more = [pool.submit(loop.run, waits, timeout_s=0.3) for _ in range(4)]
        assert [each.result(60) for each in (*good, *more)] == [2.0] * 8
        assert all(isinstance(each.exception(60), RewardTimeoutError) for each in bad)
    loop.close()
