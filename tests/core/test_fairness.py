"""How callers share the engine: a simulation of the scheduler, without models and clocks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from stars_engine import AlignParams, NoSchedule
from stars_engine.algorithm.stars import StarsDecoding
from stars_engine.core.autotune.step_costs import StepCosts
from stars_engine.core.autotune.step_limits import StepLimits
from stars_engine.core.batch_selection import _HELD_STEPS, MAX_NEW_TOKENS
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


@pytest.mark.slow
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
    sizes = []
    for _ in range(3):
        batch = scheduler.schedule()
        sizes.append(len(batch))
        for request in batch:
            request.prompt_computed = True
    assert sizes == [1, 2, 3]
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


def measured(step_s: float, row_s: float) -> StepLimits:
    """Return limits after steps that took `step_s` and `row_s` for each row, per token."""
    costs = StepCosts()
    for num_rows in (1, 8, 64):
        costs.note(num_rows, step_s + row_s * num_rows, num_tokens=1)
    return StepLimits(costs)


def limited(limits: StepLimits, **options: int) -> Scheduler:
    scheduler = Scheduler(max_active=64, **options)
    scheduler.batches.limits = limits
    return scheduler


@pytest.mark.parametrize(
    ("step_s", "row_s", "row_len", "rows"),
    [
        (0.0029, 0.0005, 8, 6),  # 50 ms for eight tokens
        (0.0301, 0.0005, 8, 16),  # a quarter more than the time of one row
        (0.0, 1.0, 8, 4),  # never fewer than four
    ],
)
def test_a_short_step_has_as_many_rows_as_earlier_steps_predict(
    step_s: float, row_s: float, row_len: int, rows: int
) -> None:
    assert measured(step_s, row_s).max_rows(row_len, 1) == rows


def test_nothing_is_limited_before_a_step_is_measured() -> None:
    limits = StepLimits(StepCosts())
    assert limits.max_rows(8, 1) is None
    assert limits.max_new_tokens() <= MAX_NEW_TOKENS


def test_a_large_call_has_no_more_rows_than_a_short_step_beside_others() -> None:
    align = AlignParams(schedule=NoSchedule(), segment_len=8, num_candidates=1)
    limits = measured(0.0029, 0.0005)
    scheduler = limited(limits)
    many = (Request(make_rollout(align=align), REWARD, StarsDecoding()) for _ in range(100))
    scheduler.add(RequestQueue(many, 100))
    assert len(scheduler.schedule()) == 48  # alone
    single = Request(make_rollout(align=align), REWARD, StarsDecoding())
    scheduler.add(RequestQueue.of([single]))
    for _ in range(4):
        batch = scheduler.schedule()
        assert single in batch
        assert 6 <= len(batch) <= 6 + 1
        assert scheduler.row_limit == 6
    scheduler.finish(single)
    sizes = [len(scheduler.schedule()) for _ in range(_HELD_STEPS)]  # the caller may come again
    assert set(sizes[:-1]) == {6}
    assert sizes[-1] == 48


def test_requests_that_draft_many_candidates_draft_fewer_beside_others() -> None:
    align = AlignParams(schedule=NoSchedule(), segment_len=8, num_candidates=200, max_attempts=200)
    wide = Request(make_rollout(align=align), REWARD, StarsDecoding())
    scheduler = limited(measured(0.0029, 0.0005))
    scheduler.add(RequestQueue.of([wide]))
    scheduler.schedule()
    assert scheduler.num_drafts(wide).least == 200
    scheduler.add(RequestQueue.of(requests_of(1)))
    scheduler.schedule()
    assert scheduler.num_drafts(wide) == (6, 6)


def test_few_tokens_of_prompts_start_beside_others() -> None:
    limits = measured(0.0029, 0.0001)
    assert limits.max_new_tokens() == 512  # not measured
    for seconds in (0.11, 0.21, -0.01):  # the last is less than the drafts take: all was cached
        limits.note_prompts(1000, num_rows=1, row_len=8, seconds=0.024 + seconds)
    assert limits.max_new_tokens() == pytest.approx(450, abs=10)
    scheduler = limited(limits)
    scheduler.add(RequestQueue(requests_of(40, num_tokens=250), 40))
    scheduler.add(RequestQueue.of(requests_of(1)))
    for _ in range(5):
        batch = scheduler.schedule()
        new = [request for request in batch if not request.prompt_computed]
        assert sum(len(request.rollout.prompt_ids) for request in new) <= limits.max_new_tokens()
        for request in batch:
            request.prompt_computed = True
