"""Threads of `asyncio.to_thread` that wait for the engine when `asyncio.run` ends."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from threading import Event, Timer

import pytest

from stars_engine import EngineClosedError
from stars_engine.runtime import blocking_wait

LATER_S = 0.1


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocking_wait, "CHECK_S", 0.01)


def leave_a_thread_waiting(outcomes: list[str], error: Exception | None = None) -> None:
    """Run a program that ends, with or without an error, while a thread of it waits."""
    result: Future[str] = Future()
    started = Event()

    def wait() -> None:
        started.set()
        try:
            outcomes.append(blocking_wait.wait_for(result))
        except EngineClosedError:
            outcomes.append("closed")

    async def main() -> None:
        task = asyncio.create_task(asyncio.to_thread(wait))
        await asyncio.to_thread(started.wait)
        assert not task.done()
        timer.start()
        if error is not None:
            raise error

    # After an error, the thread has long stopped to wait when the result comes.
    timer = Timer(LATER_S if error is None else 60.0, result.set_result, args=("answer",))
    try:
        asyncio.run(main())
    finally:
        timer.cancel()


def test_a_program_that_fails_does_not_wait_for_its_threads() -> None:
    outcomes: list[str] = []
    with pytest.raises(LookupError):
        leave_a_thread_waiting(outcomes, LookupError())
    assert outcomes == ["closed"]


def test_a_program_that_ends_by_itself_waits_for_its_threads() -> None:
    outcomes: list[str] = []
    leave_a_thread_waiting(outcomes)
    assert outcomes == ["answer"]


def test_an_error_from_before_the_program_is_not_taken_for_its_own() -> None:
    outcomes: list[str] = []
    try:
        raise LookupError
    except LookupError:
        leave_a_thread_waiting(outcomes)
        with pytest.raises(ValueError, match="of its own"):
            leave_a_thread_waiting(outcomes, ValueError("of its own"))
    assert outcomes == ["answer", "closed"]
