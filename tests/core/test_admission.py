"""Back-pressure: a large call comes in piece by piece, and others in between."""

from __future__ import annotations

import pytest

from stars_engine import AlignParams, EngineClosedError, NoSchedule, QueueFullError
from stars_engine.runtime.admission_queue import AdmissionQueue
from stars_engine.runtime.request_group import PromptRequest, RequestGroup, RewardSource

SOURCE = RewardSource("none", lambda model: None)  # type: ignore[arg-type, return-value]
ALIGN = AlignParams(schedule=NoSchedule())


def call_of(size: int) -> RequestGroup:
    return RequestGroup((PromptRequest("a", None, None, ALIGN),) * size, SOURCE)


class Door:
    """A gate, and what it let in."""

    def __init__(self, capacity: int) -> None:
        self.let_in: list[RequestGroup] = []
        self.gate = AdmissionQueue(capacity, self.let_in.append)

    def enter(self, size: int, *, wait: bool = True) -> RequestGroup:
        call = call_of(size)
        self.gate.submit(call, wait=wait)
        return call


def test_a_large_call_comes_in_as_far_as_there_is_room() -> None:
    door = Door(3)
    large = door.enter(5)
    assert door.let_in == [large]
    assert (door.gate.num_admitted, door.gate.num_in_line) == (3, 2)
    assert not large.admitted.done()
    door.gate.start_one(large)
    door.gate.start_one(large)
    assert large.admitted.done()
    assert (door.gate.num_admitted, door.gate.num_in_line) == (3, 0)


def test_those_in_line_take_turns() -> None:
    door = Door(2)
    large, other, single = door.enter(9), door.enter(4), door.enter(1)
    assert door.gate.blocked_groups == [other, single]
    order = []
    for _ in range(3):
        before = list(door.let_in)
        door.gate.start_one(large)
        order.append([call for call in door.let_in if call not in before])
    assert order == [[], [other], [single]]
    assert single.admitted.done()
    assert [door.gate.may_start(call) for call in (large, other, single)] == [False, True, True]


def test_a_queue_is_full_when_nothing_of_it_is_free() -> None:
    door = Door(2)
    first = door.enter(1)
    large = door.enter(5, wait=False)  # one place is free
    with pytest.raises(QueueFullError, match="2 requests are waiting and max_waiting is 2"):
        door.enter(1, wait=False)
    door.gate.remove(large)
    assert (door.gate.num_admitted, door.gate.num_in_line) == (1, 0)
    assert door.gate.may_start(first)
    door.enter(1, wait=False)


def test_rollouts_that_end_in_line_count_first() -> None:
    door = Door(2)
    large = door.enter(5)
    door.gate.drop(large, 3)
    assert (door.gate.num_admitted, door.gate.num_in_line) == (2, 0)
    assert large.admitted.done()
    behind = door.enter(2)
    door.gate.drop(large, 1)
    assert door.gate.may_start(behind)
    door.gate.remove(behind)
    door.gate.remove(behind)  # again does nothing
    assert (door.gate.num_admitted, door.gate.num_in_line) == (1, 0)
    door.gate.start_one(large)
    assert not door.gate._admitted
    assert not door.gate._not_admitted


def test_a_call_of_nothing_does_not_wait() -> None:
    door = Door(1)
    door.enter(3)
    empty = door.enter(0, wait=False)
    assert empty.admitted.done()
    assert empty in door.let_in


def test_a_shut_gate_lets_nobody_in() -> None:
    door = Door(1)
    large, other = door.enter(2), door.enter(1)
    assert door.gate.close() == [large, other]
    assert (door.gate.num_admitted, door.gate.num_in_line) == (0, 0)
    with pytest.raises(EngineClosedError):
        door.enter(1)
