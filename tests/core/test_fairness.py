"""How callers share the engine: a simulation of the scheduler, without models and clocks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from stars_engine import AlignParams, NoSchedule
from stars_engine.algorithm.stars import StarsDecoding
from stars_engine.core.request import Request, RequestQueue, turn_size
from stars_engine.core.scheduler import Scheduler
from stars_engine.testing import TableReward
from tests.support.rollouts import make_rollout

REWARD = TableReward({})


def requests_of(count: int, num_tokens: int = 1) -> Iterator[Request]:
    for number in range(count):
        rollout = make_rollout((number,) * num_tokens)
        yield Request(rollout, REWARD, StarsDecoding())


class Callers:
    """A large call, and single callers each of whom calls again when it has its answer."""

    def __init__(self, large: int, singles: int, max_active: int) -> None:
        self.scheduler = Scheduler(max_active=max_active)
        self.large = RequestQueue(requests_of(large), large)
        self.scheduler.add(self.large)
        self.order: list[RequestQueue | None] = []  # of all requests that ended
        for _ in range(singles):
            self.call()

    def call(self) -> None:
        self.scheduler.add(RequestQueue.of(requests_of(1)))

    def step(self) -> None:
        for request in self.scheduler.schedule():
            self.order.append(request.queue)
            self.scheduler.finish(request)
            if request.queue is not self.large:
                self.call()


@pytest.mark.parametrize(
    ("num_requests", "size"), [(0, 1), (1, 1), (3, 1), (4, 2), (100, 10), (10**6, 16)]
)
def test_a_turn_grows_with_the_root_of_the_number_of_requests(num_requests: int, size: int) -> None:
    assert turn_size(num_requests) == size


def test_a_large_call_makes_steady_progress_beside_many_single_callers() -> None:
    callers = Callers(large=600, singles=320, max_active=32)
    while callers.order.count(callers.large) < 600:
        callers.step()
    starts = [index for index, queue in enumerate(callers.order) if queue is callers.large]
    gaps = [after - before for before, after in itertools.pairwise(starts)]
    assert max(gaps) <= 320 + 1  # it waits for one turn of each other caller at most
    assert len(callers.order) <= 600 / 16 * (320 + 16) + 336


def test_no_single_caller_waits_for_more_than_one_turn_of_the_others() -> None:
    callers = Callers(large=10_000, singles=5, max_active=8)
    for _ in range(50):
        callers.step()
    singles = [index for index, queue in enumerate(callers.order) if queue is not callers.large]
    gaps = [after - before for before, after in itertools.pairwise(singles)]
    assert max(gaps) <= 2 * 16


def test_a_caller_leaves_room_for_others() -> None:
    scheduler = Scheduler(max_active=8)
    scheduler.add(RequestQueue(requests_of(100), 100))
    assert len(scheduler.schedule()) == 6
    single = next(requests_of(1))
    scheduler.add(RequestQueue.of([single]))
    assert single in scheduler.schedule()


def test_long_prompts_do_not_all_start_in_one_step() -> None:
    scheduler = Scheduler(max_active=32)
    scheduler.add(RequestQueue(requests_of(10, num_tokens=3000), 10))
    assert [len(scheduler.schedule()) for _ in range(3)] == [1, 2, 3]
    shared = make_rollout((1,) * 3000)
    same = Scheduler(max_active=32)
    copies = (Request(shared.fork(), REWARD, StarsDecoding()) for _ in range(10))
    same.add(RequestQueue(copies, 10))
    assert len(same.schedule()) == 10  # their prompt is computed once


def test_requests_are_created_when_they_start() -> None:
    created = []

    def requests() -> Iterator[Request]:
        for request in requests_of(10**6):
            created.append(request)
            yield request

    scheduler = Scheduler(max_active=4)
    scheduler.add(RequestQueue(requests(), 10**6))
    for _ in range(5):
        for request in scheduler.schedule():
            scheduler.finish(request)
    assert len(created) <= 5 * 4 + 1


def test_beside_a_single_caller_a_large_call_has_one_turn_per_step() -> None:
    scheduler = Scheduler(max_active=64)
    large = RequestQueue(requests_of(100), 100)
    scheduler.add(large)
    assert len(scheduler.schedule()) == 48
    single = next(requests_of(1))
    scheduler.add(RequestQueue.of([single]))
    batch = scheduler.schedule()
    assert single in batch
    assert len(batch) == 1 + 16
    scheduler.finish(single)
    assert len(scheduler.schedule()) > 16


def test_small_and_large_callers_of_different_segment_lengths_alternate() -> None:
    scheduler = Scheduler(max_active=64)
    scheduler.add(RequestQueue(requests_of(100), 100))
    scheduler.schedule()
    align = AlignParams(schedule=NoSchedule(), segment_len=3)
    single = Request(make_rollout(align=align), REWARD, StarsDecoding())
    scheduler.add(RequestQueue.of([single]))
    assert [single in scheduler.schedule() for _ in range(4)] in (
        [True, False] * 2,
        [False, True] * 2,
    )
