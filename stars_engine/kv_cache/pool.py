"""The slot pool: keys and values of cached prefixes, one slot each.

A prefix is stored once, whatever the number of its candidates. Slots of one capacity are allocated
in *blocks*, so that prefixes of similar length are one tensor. A slot that is not pinned keeps its
KV until its memory is needed.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from functools import partial

from stars_engine.kv_cache.block import Block, ByLayer
from stars_engine.kv_cache.cache_entry import MIN_PREFIX_LEN, CachedPrefix
from stars_engine.kv_cache.grouping import split_where
from stars_engine.kv_cache.slot_capacity import slot_capacity
from stars_engine.out_of_memory import catch_oom, empty_device_cache

_MAX_UNPINNED_BYTES = 1 << 30  # unless a limit is given
_MAX_UNPINNED_TOKENS = 1 << 16  # the same; tiny models compute more of them as fast again
_MAX_GATHERED = 4096  # tokens of prefixes that are copied into one tensor for a pass


class SlotPool:
    """The slots of one model, each with the prefix whose KV it holds or held.

    Args:
        max_bytes: Memory that all slots may take before unpinned slots are freed; None allows
            1 GiB or 65,536 tokens of unpinned slots, whichever is less, as long as there is memory.
        min_kept: Length in tokens of the shortest unpinned prefix that is kept.
    """

    def __init__(self, max_bytes: int | None = None, *, min_kept: int = MIN_PREFIX_LEN) -> None:
        self.max_bytes = max_bytes
        self._min_kept = min_kept
        self._blocks: list[Block] = []
        self._slots: list[CachedPrefix] = []
        self._free: dict[int, deque[CachedPrefix]] = defaultdict(deque)  # by capacity
        self._unpinned: deque[CachedPrefix] = deque()  # by any thread, not in `_free` yet
        self._like: tuple[ByLayer, ByLayer] | None = None  # one token's KV, for its shapes

    # --- allocation ---

    def allocate(self, lengths: Sequence[int]) -> list[CachedPrefix]:
        """Return an empty slot for each length, with some room to grow.

        Raises:
            RuntimeError: Out of memory; nothing is allocated.
        """
        wanted = [slot_capacity(length) for length in lengths]
        self._collect()
        if (over := self._bytes_over(0)) > 0:
            self.free_unused(over)
        taken: dict[int, deque[CachedPrefix]] = defaultdict(deque)
        try:
            for capacity, count in Counter(wanted).items():
                self._provide(count, capacity, taken[capacity])
        except BaseException:
            self._unpinned += [slot for slots in taken.values() for slot in slots]
            raise
        found = [taken[capacity].popleft() for capacity in wanted]
        for slot in found:
            self.trim(slot, 0)
        return found

    def pin(self, prefix: CachedPrefix) -> bool:
        """Keep a slot from eviction; return False if it is pinned already."""
        self._collect()
        free = self._free[prefix.block.capacity]
        if prefix not in free:
            return False
        free.remove(prefix)
        return True

    def unpin(self, prefix: CachedPrefix) -> None:
        """Allow eviction. May be called from any thread."""
        self._unpinned.append(prefix)

    def reserve(self, slot: CachedPrefix, length: int) -> None:
        """Make room for so many tokens in a slot; its KV stays.

        Raises:
            RuntimeError: Out of memory; the slot is unchanged.
        """
        if length <= slot.block.capacity:
            return
        [other] = self.allocate([length])
        try:
            self.copy(slot, other, len(slot.token_ids))
            # They swap places, so that whoever has the slot has the larger one.
            slot.block, other.block = other.block, slot.block
            slot.index, other.index = other.index, slot.index
        finally:
            self.trim(other, 0)
            self.unpin(other)

    def trim(self, prefix: CachedPrefix, length: int) -> None:
        """Keep only the first tokens of a slot."""
        size = len(prefix.token_ids)
        if length < size:
            # What a mask hides is multiplied by 0, and must not be nan.
            for states in prefix.block.values:
                states[prefix.index, :, length:size] = 0
            prefix.cut(length)

    def prefixes(self) -> Iterator[CachedPrefix]:
        """Yield all slots, pinned or not."""
        return iter(self._slots)

    # --- reading and writing ---

    def write(
        self, prefix: CachedPrefix, keys: ByLayer, values: ByLayer, ids: Sequence[int]
    ) -> None:
        """Append the KV of tokens, by layer `(kv_heads, tokens, head_dim)`.

        Raises:
            RuntimeError: Out of memory; the slot is unchanged.
        """
        start, end = len(prefix.token_ids), len(prefix.token_ids) + len(ids)
        if self._like is None:
            self._like = tuple([new[:, :1].clone() for new in part] for part in (keys, values))  # type: ignore[assignment]
        self.reserve(prefix, end)
        if not prefix.block.keys:
            self._allocate(prefix.block)
        for part, new_part in zip(prefix.block.parts(), (keys, values), strict=True):
            for states, new in zip(part, new_part, strict=True):
                states[prefix.index, :, start:end] = new
        prefix.append(ids)

    def copy(self, source: CachedPrefix, target: CachedPrefix, length: int) -> None:
        """Copy the first tokens of a slot into another, which is large enough."""
        self.trim(target, 0)
        if not length:  # there may be no tensors yet
            return
        if not target.block.keys:
            self._allocate(target.block)
        for part, new_part in zip(source.block.parts(), target.block.parts(), strict=True):
            for states, new in zip(part, new_part, strict=True):
                new[target.index, :, :length] = states[source.index, :, :length]
        target.append(source.token_ids[:length])

    def group(
        self, slots: Sequence[CachedPrefix], lengths: Sequence[int]
    ) -> Iterator[tuple[list[int], ByLayer, ByLayer]]:
        """Yield tensors that hold several slots, each slot in one of them.

        Neighbors in a block are a view of it. Others are copied if they are few tokens. If not,
        each run of neighbors is apart, so that a long prefix is never copied, nor a short one
        padded to its length.

        Args:
            slots: Distinct slots.
            lengths: Tokens of each; what is beyond them in the tensors has no meaning.

        Yields:
            Indices of slots in the tensors' order, and keys and values by layer: `(slots,
            kv_heads, width, head_dim)`, where `width` is the length of the longest.
        """
        order = sorted(range(len(slots)), key=lambda i: (id(slots[i].block), slots[i].index))
        runs = list(split_where(order, lambda run, i: not slots[i].follows(slots[run[-1]])))
        width = max(lengths)
        if len(runs) > 1 and len(slots) * width <= _MAX_GATHERED:
            keys, values = self.new_tensors(len(slots), width)
            self.gather([slots[i] for i in order], [lengths[i] for i in order], keys, values)
            yield order, keys, values
            return
        for run in runs:
            first, last = slots[run[0]], slots[run[-1]]
            width = max(lengths[i] for i in run)
            keys, values = (
                [states[first.index : last.index + 1, :, :width] for states in part]
                for part in first.block.parts()
            )
            yield run, keys, values

    def new_tensors(self, num_prefixes: int, width: int) -> tuple[ByLayer, ByLayer]:
        """Return tensors for prefixes, by layer `(num_prefixes, kv_heads, width, head_dim)`."""
        assert self._like is not None
        block = Block(num_prefixes, width)
        block.allocate(self._like)
        return block.parts()

    def gather(
        self, slots: Sequence[CachedPrefix], lengths: Sequence[int], keys: ByLayer, values: ByLayer
    ) -> None:
        """Copy the first tokens of slots into tensors of the caller, one after the other.

        All other values are set to 0: see `trim`.
        """
        for place, (slot, length) in enumerate(zip(slots, lengths, strict=True)):
            for part, new_part in zip(slot.block.parts(), (keys, values), strict=True):
                for states, new in zip(part, new_part, strict=True):
                    new[place, :, :length] = states[slot.index, :, :length]
            for new in values:
                new[place, :, length:] = 0
        for new in values:
            new[len(slots) :] = 0

    # --- memory ---

    @property
    def bytes_per_token(self) -> int:
        """Memory of one token's keys and values; 0 before anything is written."""
        return 0 if self._like is None else sum(new.nbytes for part in self._like for new in part)

    @property
    def num_bytes(self) -> int:
        """Memory allocated."""
        return sum(block.num_bytes for block in tuple(self._blocks))

    def free_unused(self, num_bytes: int | None = None) -> None:
        """Free slots that are not pinned, of the least recently unpinned blocks first.

        Whole blocks go first. Of the others, the pinned slots move to smaller blocks.

        Args:
            num_bytes: How much to free, if there is so much; None for all.
        """
        self._collect()
        until = -math.inf if num_bytes is None else self.num_bytes - num_bytes
        num_free = Counter(slot.block for slots in self._free.values() for slot in slots)
        for block in self._blocks.copy():
            if self.num_bytes > until and num_free[block] == block.num_slots:
                self._replace(block, None)
        for block in self._blocks.copy():
            if self.num_bytes <= until or not num_free[block] or not block.keys:
                continue
            if catch_oom(partial(self._shrink, block)) is not None:
                return

    def _shrink(self, block: Block) -> None:
        """Move the pinned slots of a block to a smaller one."""
        free = set(self._free[block.capacity])
        kept = [slot for slot in self._slots if slot.block is block and slot not in free]
        smaller = Block(len(kept), block.capacity)
        assert self._like is not None
        smaller.allocate(self._like)
        for part, new_part in zip(block.parts(), smaller.parts(), strict=True):
            for states, new in zip(part, new_part, strict=True):
                for place, slot in enumerate(kept):
                    new[place] = states[slot.index]
        for place, slot in enumerate(kept):
            slot.block, slot.index = smaller, place
        self._replace(block, smaller)

    def _replace(self, block: Block, smaller: Block | None) -> None:
        """Drop a block and its slots; put another in its place in the order, if there is one."""
        place = self._blocks.index(block)
        self._blocks[place : place + 1] = [] if smaller is None else [smaller]
        self._slots = [slot for slot in self._slots if slot.block is not block]
        kept = [slot for slot in self._free[block.capacity] if slot.block is not block]
        self._free[block.capacity] = deque(kept)

    def _collect(self) -> None:
        """Put slots that were unpinned into the eviction order, which only this method decides.

        Slots are reused from the front of `_free`, blocks freed from the front of `_blocks`: those
        least recently unpinned, but slots that no other text can continue before all others.
        """
        while self._unpinned:
            slot = self._unpinned.popleft()
            self._blocks.remove(slot.block)
            self._blocks.append(slot.block)
            line = self._free[slot.block.capacity]
            is_long = len(slot.token_ids) >= self._min_kept
            slot.is_useful = is_long and not any(_equals(slot, other) for other in line)
            if slot.is_useful:
                line.append(slot)
            else:
                line.appendleft(slot)

    def _provide(self, count: int, capacity: int, taken: deque[CachedPrefix]) -> None:
        """Take so many slots of a capacity; evict prefixes only when over the budget.

        What is taken leaves the line at once, so no room is made of it.
        """
        free = self._free[capacity]
        while len(taken) < count and free and not free[0].is_useful:
            taken.append(free.popleft())
        if self._bytes_over((count - len(taken)) * capacity) > 0:
            while len(taken) < count and free:
                taken.append(free.popleft())
        lacking = count - len(taken)
        if lacking > 0:
            self._add_block(lacking, capacity)
            taken += [self._free[capacity].popleft() for _ in range(lacking)]

    def _add_block(self, lacking: int, capacity: int) -> None:
        """Add slots: as many as needed plus half of those in use, so that growth is cheap."""
        same = sum(block.num_slots for block in self._blocks if block.capacity == capacity)
        num_slots = max(lacking, (same - len(self._free[capacity])) // 2)
        if self._bytes_over(num_slots * capacity) > 0:
            num_slots = lacking
            self.free_unused(max(0, self._bytes_over(lacking * capacity)))
        block = Block(num_slots, capacity)
        if self._like is not None:
            self._allocate(block)
        self._blocks.append(block)
        fresh = [CachedPrefix(block, index) for index in range(num_slots)]
        self._slots += fresh
        self._free[capacity].extendleft(reversed(fresh))

    def _bytes_over(self, num_tokens: int) -> int:
        """Return how many bytes have to be freed for so many more tokens."""
        if self.max_bytes is not None:
            return self.num_bytes + num_tokens * self.bytes_per_token - self.max_bytes
        num_free = sum(slot.block.capacity for slots in self._free.values() for slot in slots)
        return num_free * self.bytes_per_token - min(
            _MAX_UNPINNED_BYTES, _MAX_UNPINNED_TOKENS * self.bytes_per_token
        )

    def _allocate(self, block: Block) -> None:
        assert self._like is not None
        like = self._like
        if catch_oom(lambda: block.allocate(like)) is not None:
            self.free_unused()
            empty_device_cache()
            block.allocate(like)


def _equals(slot: CachedPrefix, other: CachedPrefix) -> bool:
    """Whether a slot has nothing that another one lacks."""
    return slot.token_ids == other.token_ids and slot.outputs.keys() <= other.outputs.keys()
