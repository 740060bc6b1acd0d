"""The slot pool: allocation, growth, unpinning, freeing, grouping."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stars_engine.kv_cache.pool import SlotPool
from stars_engine.kv_cache.slot_capacity import capacity_for


def fill(pool: SlotPool, length: int) -> Any:
    [slot] = pool.allocate([length])
    states = [torch.full((2, length, 4), float(length))]
    pool.write(slot, states, states, [length] * length)
    return slot


def test_a_long_prefix_does_not_grow_a_short_one() -> None:
    pool = SlotPool()
    slots = [fill(pool, length) for length in (10, 20, 3000)]
    assert [slot.block.capacity for slot in slots] == [64, 64, 4096]
    assert pool.num_bytes == (64 + 64 + 4096) * pool.bytes_per_token


def test_a_growing_prefix_moves_with_its_contents() -> None:
    pool = SlotPool()
    slot, other = fill(pool, 40), fill(pool, 41)
    for _ in range(5):
        more = [torch.full((2, 30, 4), 7.0)]
        pool.write(slot, more, more, [7] * 30)
    assert slot.token_ids == [40] * 40 + [7] * 150
    [(_, [keys], [values])] = pool.group([slot], [190])
    assert keys[0, 1, :, 2].tolist() == values[0, 0, :, 1].tolist() == [40.0] * 40 + [7.0] * 150
    assert other.token_ids == [41] * 41


def test_cached_prefixes_stay_within_the_budget() -> None:
    pool = SlotPool()
    first = fill(pool, 30)
    pool.max_bytes = 2 * 64 * pool.bytes_per_token
    pool.unpin(first)
    second = fill(pool, 33)
    assert first.token_ids == [30] * 30
    pool.unpin(second)
    third = fill(pool, 34)  # in the place of the longest unused
    assert third is first
    assert second.token_ids == [33] * 33
    assert pool.num_bytes == pool.max_bytes


def test_equal_prefixes_are_kept_once() -> None:
    """Equal requests one after the other, whose prompts are too short to be found."""
    pool = SlotPool()
    for _ in range(20):
        pool.unpin(fill(pool, 40))
    pool.unpin(fill(pool, 41))
    fill(pool, 42)  # another takes the place of the one that is spare
    assert pool.num_bytes <= 3 * 64 * pool.bytes_per_token
    kept = [slot.token_ids for slot in pool.prefixes()]
    assert [40] * 40 in kept
    assert [41] * 41 in kept


def test_a_prefix_with_more_outputs_than_an_equal_one_is_kept() -> None:
    pool = SlotPool()
    slots = [fill(pool, 40) for _ in range(3)]
    for slot, points in zip(slots, [(39,), (20, 39), (39,)], strict=True):
        slot.outputs = dict.fromkeys(points, torch.zeros(1))
        pool.unpin(slot)
    found = [fill(pool, 41) for _ in range(2)]
    assert slots[2] in found  # it has nothing that the second lacks
    assert slots[0] not in found
    assert slots[1] not in found


def test_prefixes_of_tiny_models_stay_within_so_many_tokens() -> None:
    """Without a limit in bytes, 1 GiB of them would take long to fill, and to search."""
    pool = SlotPool()
    slots = [fill(pool, 12_000) for _ in range(6)]
    for slot in slots:
        pool.unpin(slot)
    fill(pool, 30)
    assert pool.num_bytes == (4 * 16_384 + 64) * pool.bytes_per_token
    assert [len(slot.token_ids) for slot in pool.prefixes()] == [12_000] * 4 + [30]


@pytest.mark.parametrize("lengths", [[100, 400], [400, 100, 100, 30], [30, 30, 400]])
def test_the_newest_block_is_not_evicted(lengths: list[int]) -> None:
    pool = SlotPool()
    for length in lengths:
        pool.unpin(fill(pool, length))
    pool.max_bytes = pool.bytes_per_token * 10
    slots = pool.allocate(lengths)
    assert len({id(slot) for slot in slots}) == len(lengths)
    assert all(slot.block.capacity >= n for slot, n in zip(slots, lengths, strict=True))


def test_nan_stays_within_its_prefix() -> None:
    pool = SlotPool()
    bad = fill(pool, 40)
    bad.block.keys[0][bad.index], bad.block.values[0][bad.index] = torch.nan, torch.nan
    place = bad.block, bad.index
    pool.max_bytes = pool.num_bytes
    pool.unpin(bad)
    again = fill(pool, 3)
    assert (again.block, again.index) == place
    [(_, _, [values])] = pool.group([again], [3])
    assert again.block.values[0][again.index, :, :40].isfinite().all()
    assert values.isfinite().all()


def test_blocks_without_a_cached_prefix_are_reused_first() -> None:
    pool = SlotPool()
    long, short, grown = fill(pool, 40), fill(pool, 3), fill(pool, 45)
    place = grown.block, grown.index
    pool.reserve(grown, 200)
    for slot in (long, short):
        pool.unpin(slot)
    found = pool.allocate([5, 5])
    assert {(slot.block, slot.index) for slot in found} == {(short.block, short.index), place}
    assert grown.token_ids == [45] * 45
    assert long.token_ids == [40] * 40


def test_unused_blocks_are_freed_and_those_in_use_stay() -> None:
    pool = SlotPool()
    kept, other = fill(pool, 30), fill(pool, 500)
    before = pool.num_bytes - 768 * pool.bytes_per_token
    pool.unpin(other)
    pool.free_unused()
    assert pool.num_bytes == before
    assert kept.token_ids == [30] * 30


def test_the_free_part_of_a_block_in_use_is_freed() -> None:
    pool = SlotPool()
    fill(pool, 30)  # the pool knows what a token takes
    slots = pool.allocate([100] * 6)
    states = [[torch.full((2, 100, 4), float(index))] for index in range(6)]
    for index, slot in enumerate(slots):
        pool.write(slot, states[index], states[index], [index] * 100)
    for slot in (*slots[:2], slots[3]):
        pool.unpin(slot)
    per_token, before = pool.bytes_per_token, pool.num_bytes
    pool.free_unused()
    assert before - pool.num_bytes == 3 * 128 * per_token
    assert len(list(pool.prefixes())) == 4
    for index in (2, 4, 5):
        assert slots[index].token_ids == [index] * 100
        [(_, [keys], [values])] = pool.group([slots[index]], [100])
        assert keys.eq(index).all()
        assert values.eq(index).all()
    [again] = pool.allocate([100])
    assert again not in slots


def test_the_bound_holds_although_a_slot_of_each_block_is_in_use() -> None:
    pool = SlotPool()
    fill(pool, 30)
    pinned = [64, 128, 192, 256]
    pool.max_bytes = (sum(pinned) + 4 * 384) * pool.bytes_per_token
    for length in (100, 150, 200, 300):
        slots = pool.allocate([length] * 4)
        assert pool.num_bytes <= pool.max_bytes
        for slot in slots[1:]:
            pool.unpin(slot)
    assert sum(slot.block.capacity for slot in pool.prefixes()) == sum(pinned) + 4 * 384


def test_the_block_released_first_is_freed_first() -> None:
    pool = SlotPool()
    kept, early, late = fill(pool, 50), fill(pool, 140), fill(pool, 300)
    pool.max_bytes = pool.num_bytes + 200 * pool.bytes_per_token
    pool.unpin(late)
    pool.unpin(early)
    fill(pool, 200)
    alive = {id(slot) for slot in pool.prefixes()}
    assert id(late) not in alive
    assert {id(kept), id(early)} <= alive


def test_prefixes_are_adjacent_or_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = SlotPool()
    lengths = [20, 30, 100, 25, 300]
    slots = [fill(pool, length) for length in lengths]
    for most in (10_000, 0):
        monkeypatch.setattr("stars_engine.kv_cache.pool._MAX_GATHERED", most)
        seen: dict[int, float] = {}
        tensors = list(pool.group(slots, lengths))
        for order, [keys], _ in tensors:
            for place, index in enumerate(order):
                seen[index] = keys[place, 0, : lengths[index], 0].tolist()
        assert seen == {i: [float(n)] * n for i, n in enumerate(lengths)}
        assert (len(tensors) == 1) is (most > 0)


def test_capacities_leave_a_third_unused_at_most() -> None:
    capacities = sorted({capacity_for(length) for length in range(1, 5000)})
    assert capacities[:6] == [64, 96, 128, 192, 256, 384]
    assert all(later <= 1.5 * earlier for earlier, later in zip(capacities, capacities[1:]))  # noqa: B905, RUF007
