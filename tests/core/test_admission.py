"""Back-pressure: a large call is admitted in parts, and other calls in between."""

from __future__ import annotations

import pytest

from stars_engine import AlignParams, EngineClosedError, NoSchedule, QueueFullError
from stars_engine.runtime.admission_queue import AdmissionQueue
from stars_engine.runtime.request_group import PromptRequest, RequestGroup, RewardSource

SOURCE = RewardSource("none", lambda model: None)  # type: ignore[arg-type, return-value]
ALIGN = AlignParams(schedule=NoSchedule())


def call_of(size: int) -> RequestGroup:
    return RequestGroup((PromptRequest("a", None, None, ALIGN),) * size, SOURCE)


class RecordingQueue:
    """An admission queue that records which requests it admits."""

    def __init__(self, capacity: int) -> None:
        self.admitted: list[RequestGroup] = []
        self.queue = AdmissionQueue(capacity, self.admitted.append)

    def enter(self, size: int, *, wait: bool = True) -> RequestGroup:
        call = call_of(size)
        self.queue.submit(call, wait=wait)
        return call


def test_a_large_call_is_admitted_as_far_as_the_capacity_allows() -> None:
    recording = RecordingQueue(3)
    large = recording.enter(5)
    assert recording.admitted == [large]
    assert (recording.queue.num_admitted, recording.queue.num_in_line) == (3, 2)
    assert not large.admitted.done()
    recording.queue.start_one(large)
    recording.queue.start_one(large)
    assert large.admitted.done()
    assert (recording.queue.num_admitted, recording.queue.num_in_line) == (3, 0)


def test_waiting_calls_are_admitted_in_turn() -> None:
    recording = RecordingQueue(2)
    large, other, single = recording.enter(9), recording.enter(4), recording.enter(1)
    assert recording.queue.unadmitted_groups == [other, single]
    order = []
    for _ in range(3):
        before = list(recording.admitted)
        recording.queue.start_one(large)
        order.append([call for call in recording.admitted if call not in before])
    assert order == [[], [other], [single]]
    assert single.admitted.done()
    assert [recording.queue.may_start(call) for call in (large, other, single)] == [
        False,
        True,
        True,
    ]


def test_a_queue_without_free_capacity_is_full() -> None:
    recording = RecordingQueue(2)
    first = recording.enter(1)
    large = recording.enter(5, wait=False)  # one slot is free
    with pytest.raises(QueueFullError, match="2 requests are waiting and max_waiting is 2"):
        recording.enter(1, wait=False)
    recording.queue.remove(large)
    assert (recording.queue.num_admitted, recording.queue.num_in_line) == (1, 0)
    assert recording.queue.may_start(first)
    recording.enter(1, wait=False)


def test_finished_rollouts_that_wait_count_first() -> None:
    recording = RecordingQueue(2)
    large = recording.enter(5)
    recording.queue.drop(large, 3)
    assert (recording.queue.num_admitted, recording.queue.num_in_line) == (2, 0)
    assert large.admitted.done()
    behind = recording.enter(2)
    recording.queue.drop(large, 1)
    assert recording.queue.may_start(behind)
    recording.queue.remove(behind)
    recording.queue.remove(behind)  # again does nothing
    assert (recording.queue.num_admitted, recording.queue.num_in_line) == (1, 0)
    recording.queue.start_one(large)
    assert not recording.queue._admitted
    assert not recording.queue._not_admitted


def test_a_call_that_is_removed_before_its_request_starts() -> None:
    recording = RecordingQueue(2)
    overdue, other = recording.enter(1), recording.enter(2)
    assert recording.queue.may_start(overdue)
    recording.queue.remove(overdue)  # by another thread, because its deadline has passed
    recording.queue.start_one(overdue)
    assert not recording.queue.may_start(overdue)
    assert recording.queue.num_admitted == 2
    assert other.admitted.done()


def test_an_empty_call_does_not_wait() -> None:
    recording = RecordingQueue(1)
    recording.enter(3)
    empty = recording.enter(0, wait=False)
    assert empty.admitted.done()
    assert empty in recording.admitted


def test_a_closed_queue_admits_nothing() -> None:
    recording = RecordingQueue(1)
    large, other = recording.enter(2), recording.enter(1)
    assert recording.queue.close() == [large, other]
    assert (recording.queue.num_admitted, recording.queue.num_in_line) == (0, 0)
    with pytest.raises(EngineClosedError):
        recording.enter(1)


def test_a_large_call_leaves_places_for_others() -> None:
    recording = RecordingQueue(16)
    large = recording.enter(20)
    assert (recording.queue.num_admitted, recording.queue.num_in_line) == (16, 4)
    single, pair = recording.enter(1), recording.enter(2)
    assert recording.admitted == [large, single, pair]
    assert single.admitted.done()
    assert not pair.admitted.done()
    assert recording.queue.num_admitted == 18
    for _ in range(4):
        recording.queue.start_one(large)
    assert recording.queue.num_admitted == 16
    assert pair.admitted.done()
