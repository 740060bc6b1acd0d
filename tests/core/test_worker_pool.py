"""Threads for user code: turns, limits, and calls that hang."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from stars_engine.threads.background_threads import BackgroundThreads
from stars_engine.threads.worker_pool import MIN_HUNG, Task, WorkerPool, current_executor
from tests.support.engines import wait_until


class Pool:
    """Workers whose tasks run until they are released."""

    def __init__(self, max_workers: int) -> None:
        self.workers = WorkerPool("test", max_workers, mark=self)
        self.release = threading.Event()
        self.started: list[str] = []
        self.marks: set[object] = set()

    def submit(self, owner: str, *, timeout_s: float | None = None) -> Task:
        def work(_: Task) -> None:
            self.started.append(owner)
            self.marks.add(current_executor.get())
            self.release.wait(30)

        task = Task(
            work,
            owner=owner,
            timeout_s=timeout_s,
            on_timeout=lambda _: None,
            is_wanted=lambda: True,
        )
        self.workers.submit(task)
        return task

    def settled(self, count: int) -> list[str]:
        """What has started, once that many have, and no more soon after."""
        wait_until(lambda: len(self.started) >= count)
        time.sleep(0.05)
        assert len(self.started) == count
        return self.started


@pytest.fixture
def pools() -> Iterator[Any]:
    made: list[Pool] = []

    def make(max_workers: int) -> Pool:
        made.append(Pool(max_workers))
        return made[-1]

    yield make
    for pool in made:
        pool.release.set()
        pool.workers.close()
        pool.workers.join(time.monotonic() + 10)
        wait_until(lambda pool=pool: not any(t.is_alive() for t in pool.workers.threads))


def test_one_owner_leaves_threads_for_others(pools: Any) -> None:
    pool = pools(8)
    for _ in range(20):
        pool.submit("greedy")
    assert pool.settled(6) == ["greedy"] * 6
    pool.submit("second")
    pool.submit("second")
    pool.submit("third")
    assert sorted(pool.settled(8)[6:]) == ["second", "third"]
    assert pool.marks == {pool}


def test_owners_take_turns(pools: Any) -> None:
    pool = pools(1)
    pool.submit("first")
    pool.settled(1)
    for owner in ("a", "a", "b", "c", "b"):
        pool.submit(owner)
    pool.release.set()
    wait_until(lambda: len(pool.started) == 6)
    assert pool.started == ["first", "a", "b", "c", "a", "b"]


def test_a_pool_of_one_or_two_threads_is_used_fully(pools: Any) -> None:
    pool = pools(2)
    pool.submit("a")
    pool.submit("b")
    assert sorted(pool.settled(2)) == ["a", "b"]


def test_hung_calls_do_not_multiply_threads(pools: Any) -> None:
    pool = pools(2)
    count = 0
    tasks: list[Task] = []
    while len(tasks) < 3 * MIN_HUNG:
        tasks.append(pool.submit(f"owner {count}", timeout_s=0.01))
        count += 1

    def all_over() -> bool:
        pool.workers.expire_overdue()
        return all(task.ended for task in tasks)

    wait_until(all_over)  # also those for which no thread is left
    wait_until(lambda: len(pool.started) >= MIN_HUNG + 2)
    assert len(pool.started) == MIN_HUNG + 2
    assert sum(t.is_alive() for t in pool.workers.threads) == MIN_HUNG + 2
    pool.release.set()  # they come back, and there is room again
    wait_until(lambda: not any(t.is_alive() for t in pool.workers.threads))
    pool.submit("late")
    wait_until(lambda: pool.started[-1] == "late")


def test_submitted_tasks_finish_before_the_threads_end(pools: Any) -> None:
    pool = pools(2)
    for index in range(6):
        pool.submit(f"owner {index}")
    pool.workers.close()
    pool.release.set()
    pool.workers.join(time.monotonic() + 10)
    assert len(pool.started) == 6


def test_background_threads_keep_nothing_of_their_work_and_end_with_their_owner() -> None:
    class Value:
        pass

    background = BackgroundThreads("test")
    found = weakref.ref(background.submit(Value).result(60))
    wait_until(lambda: found() is None)
    (thread,) = background.threads
    del background
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()
