"""Which requests are preempted when memory runs out, and what is kept of a step."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from stars_engine import AlignParams, NoSchedule, SamplingParams
from stars_engine.algorithm.stars import StarsDecoding
from stars_engine.backends.base import Draft, DraftRequest
from stars_engine.core.engine_core import EngineCore
from stars_engine.core.request import Request, RequestQueue, RequestStatus
from stars_engine.core.scheduler import Scheduler
from stars_engine.testing import TableReward, TabularModel
from tests.support.rollouts import make_rollout

ALIGN = AlignParams(schedule=NoSchedule(), segment_len=2, num_candidates=2)


def make_requests(count: int, max_tokens: int = 4) -> list[Request]:
    return [
        Request(
            make_rollout(
                prompt_ids=(index,), align=ALIGN, sampling=SamplingParams(max_tokens=max_tokens)
            ),
            TableReward({}),
            StarsDecoding(),
        )
        for index in range(count)
    ]


def running(count: int, *, holding: Sequence[int]) -> tuple[Scheduler, list[Request]]:
    """Requests in progress, oldest first, some of which hold a prefix."""
    scheduler, requests = Scheduler(), make_requests(count)
    scheduler.add(RequestQueue.of(requests))
    assert scheduler.schedule() == requests
    for index in holding:
        requests[index].handle.cached = "a prefix"
    return scheduler, requests


@pytest.mark.parametrize(
    ("batch", "holding", "preempted"),
    [
        ([0, 1, 2, 3], [0, 1], [2, 3]),  # nothing is cached of those that go
        ([3], [0, 1], [3]),  # also if all that hold a prefix are elsewhere
        ([0, 1, 2, 3], [0, 1, 2, 3], [2, 3]),
        ([0, 1, 2], [0, 1, 2], [2]),
        ([0, 1, 2, 3], [], [2, 3]),
        ([3], [0, 1, 2, 3], [2, 3]),  # the youngest, though it is their turn
        ([0], [0, 1], [1]),
    ],
)
def test_the_order_of_preemption(
    batch: list[int], holding: list[int], preempted: list[int]
) -> None:
    scheduler, requests = running(4, holding=holding)
    left = scheduler.preempt([requests[index] for index in batch])
    assert left == [requests[index] for index in batch if index not in preempted]
    waiting = [request for request in requests if request.status is RequestStatus.WAITING]
    assert waiting == [requests[index] for index in preempted]
    assert not any(request.holds_prefix for request in waiting)


def test_requests_that_wait_for_rewards_are_preempted_before_those_that_run() -> None:
    scheduler, requests = running(4, holding=range(4))
    for request in requests[:2]:
        scheduler.wait_for_reward(request)
    batch = requests[2:]
    for gone in (1, 0):
        assert scheduler.preempt(batch) == batch
        assert not requests[gone].holds_prefix
        assert requests[gone].status is RequestStatus.WAITING_FOR_REWARD  # its drafts are kept
    assert scheduler.preempt(batch) == batch[:1]
    assert scheduler.preempt(batch[:1]) is None  # alone
    scheduler.run_again(requests[0])  # there is no room for it now
    assert requests[0].status is RequestStatus.WAITING


def test_preempted_requests_resume_oldest_first_when_others_end() -> None:
    scheduler, requests = running(4, holding=[0])
    scheduler.preempt(requests)
    late = make_requests(1)
    scheduler.add(RequestQueue.of(late))
    assert scheduler.schedule() == requests[:1]  # no room, as far as is known
    scheduler.finish(requests[0])
    # No prefix is held any more: nothing speaks against trying all; the new one goes last.
    assert scheduler.schedule() == [*requests[1:], *late]


def test_drafts_before_memory_ran_out_are_kept() -> None:
    class Model(TabularModel):
        """Has memory for the prefixes of two requests."""

        drafted: list[int] = []  # noqa: RUF012 - prompts of the drafts that were made

        def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]:
            handles = {request.handle for request in requests} | held
            if sum(h.cached is not None or h not in held for h in handles) > 2:
                raise MemoryError
            for request in requests:
                request.handle.cached = "a prefix"
                held.add(request.handle)
                self.drafted.append(request.token_ids[0])
            return super().draft(requests)

    held: set[object] = set()
    model = Model(("a", "b", "c", "d"), lambda _: (1.0, 0.0, 0.0, 0.0))
    core = EngineCore(model)
    requests = make_requests(4, max_tokens=2)
    core.add(RequestQueue.of(requests))
    while core.has_unfinished:
        core.step()
    assert {request.rollout.text for request in requests} == {"aa"}
    assert sorted(model.drafted) == [0, 0, 1, 1, 2, 2, 3, 3]  # two candidates each, once
