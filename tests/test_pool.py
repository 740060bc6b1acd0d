"""Slots of prefixes: taken, grown, given back, let go of, side by side."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stars_engine.kv_cache.pool import SlotPool
from stars_engine.kv_cache.prefixes import capacity_for


def fill(pool: SlotPool, length: int) -> Any:
    [slot] = pool.take([length])
    states = [torch.full((2, length, 4), float(length))]
    pool.write(slot, states, states, [length] * length)
    return slot


def test_a_long_prefix_makes_no_short_one_longer() -> None:
    pool = SlotPool()
    slots = [fill(pool, length) for length in (10, 20, 3000)]
    assert [slot.block.capacity for slot in slots] == [64, 64, 4096]
    assert pool.num_bytes == (64 + 64 + 4096) * pool.bytes_per_token


def test_a_prefix_that_grows_moves_with_all_it_holds() -> None:
    pool = SlotPool()
    slot, other = fill(pool, 40), fill(pool, 41)
    for _ in range(5):
        more = [torch.full((2, 30, 4), 7.0)]
        pool.write(slot, more, more, [7] * 30)
    assert slot.ids == [40] * 40 + [7] * 150
    [(_, [keys], [values])] = pool.side_by_side([slot], [190])
    assert keys[0, 1, :, 2].tolist() == values[0, 0, :, 1].tolist() == [40.0] * 40 + [7.0] * 150
    assert other.ids == [41] * 41


def test_what_others_can_go_on_from_is_kept_within_the_budget() -> None:
    pool = SlotPool()
    first = fill(pool, 30)
    pool.max_bytes = 2 * 64 * pool.bytes_per_token
    pool.give_back(first)
    second = fill(pool, 33)
    assert first.ids == [30] * 30
    pool.give_back(second)
    third = fill(pool, 34)  # in the place of the longest unused
    assert third is first
    assert second.ids == [33] * 33
    assert pool.num_bytes == pool.max_bytes


@pytest.mark.parametrize("lengths", [[100, 400], [400, 100, 100, 30], [30, 30, 400]])
def test_room_is_not_made_of_what_was_just_taken(lengths: list[int]) -> None:
    pool = SlotPool()
    for length in lengths:
        pool.give_back(fill(pool, length))
    pool.max_bytes = pool.bytes_per_token * 10
    slots = pool.take(lengths)
    assert len({id(slot) for slot in slots}) == len(lengths)
    assert all(slot.block.capacity >= n for slot, n in zip(slots, lengths, strict=True))


def test_nan_of_one_prefix_stays_in_it() -> None:
    pool = SlotPool()
    bad = fill(pool, 40)
    bad.block.keys[0][bad.index], bad.block.values[0][bad.index] = torch.nan, torch.nan
    place = bad.block, bad.index
    pool.max_bytes = pool.num_bytes
    pool.give_back(bad)
    again = fill(pool, 3)
    assert (again.block, again.index) == place
    [(_, _, [values])] = pool.side_by_side([again], [3])
    assert again.block.values[0][again.index, :, :40].isfinite().all()
    assert values.isfinite().all()


def test_what_nobody_can_go_on_from_is_used_again_first() -> None:
    pool = SlotPool()
    long, short, stale = fill(pool, 40), fill(pool, 3), fill(pool, 45)
    pool.forget()
    long.stale = False
    for slot in (long, stale, short):
        pool.give_back(slot)
    assert {id(slot) for slot in pool.take([5, 5])} == {id(short), id(stale)}
    assert long.ids == [40] * 40


def test_unused_blocks_are_let_go_and_those_in_use_stay() -> None:
    pool = SlotPool()
    kept, other = fill(pool, 30), fill(pool, 500)
    before = pool.num_bytes - 768 * pool.bytes_per_token
    pool.give_back(other)
    pool.drop_unused()
    assert pool.num_bytes == before
    assert kept.ids == [30] * 30


def test_what_was_given_back_first_is_let_go_first() -> None:
    pool = SlotPool()
    kept, early, late = fill(pool, 50), fill(pool, 140), fill(pool, 300)
    pool.max_bytes = pool.num_bytes + 200 * pool.bytes_per_token
    pool.give_back(late)
    pool.give_back(early)
    fill(pool, 200)
    alive = {id(slot) for slot in pool.slots()}
    assert id(late) not in alive
    assert {id(kept), id(early)} <= alive


def test_prefixes_stand_side_by_side_or_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = SlotPool()
    lengths = [20, 30, 100, 25, 300]
    slots = [fill(pool, length) for length in lengths]
    for most in (10_000, 0):
        monkeypatch.setattr("stars_engine.kv_cache.pool._MOST_COPIED", most)
        seen: dict[int, float] = {}
        tensors = list(pool.side_by_side(slots, lengths))
        for order, [keys], _ in tensors:
            for place, index in enumerate(order):
                seen[index] = keys[place, 0, : lengths[index], 0].tolist()
        assert seen == {i: [float(n)] * n for i, n in enumerate(lengths)}
        assert (len(tensors) == 1) is (most > 0)


def test_capacities_leave_a_third_unused_at_most() -> None:
    capacities = sorted({capacity_for(length) for length in range(1, 5000)})
    assert capacities[:6] == [64, 96, 128, 192, 256, 384]
    assert all(later <= 1.5 * earlier for earlier, later in zip(capacities, capacities[1:]))  # noqa: B905, RUF007
