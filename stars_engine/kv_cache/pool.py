"""Keys and values of committed prefixes, one slot each.

A prefix is stored once, whatever the number of its candidates. Rejecting a candidate is doing
nothing; accepting one copies its row behind the prefix.

Slots of one capacity stand beside each other in *blocks*, so that prefixes of like length are one
tensor. A slot that is given back keeps its columns until its room is needed.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence

import torch

from stars_engine.kv_cache.prefixes import LEAST, capacity_of_slot
from stars_engine.memory import release_unused, want_of_memory

logger = logging.getLogger(__name__)

ByLayer = list[torch.Tensor]

_MOST_KEPT = 1 << 30  # bytes of unused slots that are kept, if no bound is given
_MOST_COPIED = 4096  # tokens of prefixes that are put side by side for a round


class Block:
    """Tensors of some slots of one capacity.

    Attributes:
        num_slots: How many.
        capacity: Tokens of each.
        keys: By layer, `(num_slots, kv_heads, capacity, head_dim)`; none before the first write.
        values: Like `keys`.
    """

    def __init__(self, num_slots: int, capacity: int) -> None:
        self.num_slots, self.capacity = num_slots, capacity
        self.keys: ByLayer = []
        self.values: ByLayer = []

    @property
    def num_bytes(self) -> int:
        """Memory held."""
        return sum(states.nbytes for part in self.parts() for states in part)

    def parts(self) -> tuple[ByLayer, ByLayer]:
        """Return keys and values."""
        return self.keys, self.values

    def allocate(self, like: tuple[ByLayer, ByLayer]) -> None:
        """Make the tensors, for states of the same heads, dimensions, type and device."""
        # Zeros: what a mask hides is multiplied by 0, and must not be nan.
        self.keys, self.values = (
            [
                new.new_zeros(self.num_slots, new.shape[0], self.capacity, new.shape[2])
                for new in part
            ]
            for part in like
        )


class Slot:
    """Room for one prefix; another place when it has outgrown its own.

    Attributes:
        block: Where it is.
        index: Its row there.
        ids: The tokens whose keys and values it holds, in use or not.
        stale: Whether they are of no use to others: read with other weights, or grown out of.
    """

    __slots__ = ("__weakref__", "block", "ids", "index", "stale")

    def __init__(self, block: Block, index: int) -> None:
        self.block, self.index = block, index
        self.ids: list[int] = []
        self.stale = False


class SlotPool:
    """Slots of a model.

    Args:
        max_bytes: What slots in use and unused ones may take together before the latter are let go
            of; None: 1 GiB of unused ones is kept, as long as there is memory.
    """

    def __init__(self, max_bytes: int | None = None) -> None:
        self.max_bytes = max_bytes
        self._blocks: list[Block] = []  # the latest given back last
        self._slots: list[Slot] = []
        self._free: dict[int, deque[Slot]] = defaultdict(deque)  # by capacity, longest free first
        self._given_back: deque[Slot] = deque()  # from any thread
        self._like: tuple[ByLayer, ByLayer] | None = None  # one token's states, for their shapes

    # --- having and giving back ---

    def take(self, lengths: Sequence[int]) -> list[Slot]:
        """Return an empty slot for so many tokens, and some more, for each length.

        Raises:
            RuntimeError: Memory has ended; nothing is taken.
        """
        wanted = [capacity_of_slot(length) for length in lengths]
        self._collect()
        if (over := self._bytes_over(0)) > 0:
            self.drop_unused(over)
        taken: dict[int, deque[Slot]] = defaultdict(deque)
        try:
            for capacity, count in Counter(wanted).items():
                self._provide(count, capacity, taken[capacity])
        except BaseException:
            self._given_back += [slot for slots in taken.values() for slot in slots]
            raise
        found = [taken[capacity].popleft() for capacity in wanted]
        for slot in found:
            self.trim(slot, 0)
            slot.stale = False
        return found

    def take_back(self, slot: Slot) -> bool:
        """Take a certain slot, with what is in it; False if somebody has it."""
        self._collect()
        free = self._free[slot.block.capacity]
        if slot not in free:
            return False
        free.remove(slot)
        return True

    def give_back(self, slot: Slot) -> None:
        """Let others use a slot; may be called from any thread."""
        self._given_back.append(slot)

    def reserve(self, slot: Slot, length: int) -> None:
        """Make a slot long enough for so many tokens; what is in it stays.

        Raises:
            RuntimeError: Memory has ended; the slot is as it was.
        """
        if length <= slot.block.capacity:
            return
        [other] = self.take([length])
        self.copy(slot, other, len(slot.ids))
        # They change places, so that whoever has the slot has the longer one.
        slot.block, other.block = other.block, slot.block
        slot.index, other.index = other.index, slot.index
        other.stale = True  # the rest of it would be kept twice
        self.give_back(other)

    def trim(self, slot: Slot, length: int) -> None:
        """Forget all but the first columns of a slot."""
        if length < len(slot.ids):
            # What a mask hides is multiplied by 0, and must not be nan.
            for states in slot.block.values:
                states[slot.index, :, length : len(slot.ids)] = 0
            slot.ids = slot.ids[:length]

    def slots(self) -> Iterator[Slot]:
        """Yield all slots, in use or not."""
        return iter(self._slots)

    def forget(self) -> None:
        """Call what slots hold stale, as long as somebody has them and afterwards."""
        for slot in self._slots:
            slot.stale = True

    # --- reading and writing ---

    def write(self, slot: Slot, keys: ByLayer, values: ByLayer, ids: Sequence[int]) -> None:
        """Append columns, by layer `(kv_heads, count, head_dim)`, of so many tokens to a slot.

        Raises:
            RuntimeError: Memory has ended; the slot is as it was.
        """
        start, end = len(slot.ids), len(slot.ids) + len(ids)
        if self._like is None:
            self._like = tuple([new[:, :1].clone() for new in part] for part in (keys, values))  # type: ignore[assignment]
        self.reserve(slot, end)
        if not slot.block.keys:
            self._allocate(slot.block)
        for part, new_part in zip(slot.block.parts(), (keys, values), strict=True):
            for states, new in zip(part, new_part, strict=True):
                states[slot.index, :, start:end] = new
        slot.ids = [*slot.ids, *ids]

    def copy(self, source: Slot, target: Slot, length: int) -> None:
        """Copy the first columns of a slot into another, which is long enough."""
        self.trim(target, 0)
        target.ids = source.ids[:length]
        if not length:  # there may be no tensors yet
            return
        if not target.block.keys:
            self._allocate(target.block)
        for part, new_part in zip(source.block.parts(), target.block.parts(), strict=True):
            for states, new in zip(part, new_part, strict=True):
                new[target.index, :, :length] = states[source.index, :, :length]

    def side_by_side(
        self, slots: Sequence[Slot], lengths: Sequence[int]
    ) -> Iterator[tuple[list[int], ByLayer, ByLayer]]:
        """Yield tensors in which slots stand beside each other, each slot in one of them.

        Neighbours in a block are a view of it. Others are copied if they are few tokens; if not,
        each block is apart, so that a long prefix is never copied, nor a short one padded to it.

        Args:
            slots: No two of them the same.
            lengths: Columns of each that are wanted; the others are not to be looked at.

        Yields:
            Indices of slots in the order in which they stand there, keys and values by layer:
            `(slots, kv_heads, width, head_dim)`, `width` being the longest one's length.
        """
        order = sorted(range(len(slots)), key=lambda i: (id(slots[i].block), slots[i].index))
        runs = _runs(order, slots)
        width = max(lengths)
        if len(runs) > 1 and len(slots) * width <= _MOST_COPIED:
            keys, values = self.empty(len(slots), width)
            self.copy_out([slots[i] for i in order], [lengths[i] for i in order], keys, values)
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

    def empty(self, num_prefixes: int, width: int) -> tuple[ByLayer, ByLayer]:
        """Return room of its own for prefixes, by layer `(num_prefixes, heads, width, dim)`."""
        assert self._like is not None
        block = Block(num_prefixes, width)
        block.allocate(self._like)
        return block.parts()

    def copy_out(
        self, slots: Sequence[Slot], lengths: Sequence[int], keys: ByLayer, values: ByLayer
    ) -> None:
        """Copy the first columns of slots into room of the caller's, one after the other.

        Values of all other columns are 0 afterwards: see `trim`.
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
        """Memory held."""
        return sum(block.num_bytes for block in self._blocks)

    def drop_unused(self, num_bytes: int | None = None) -> None:
        """Let go of blocks that nobody uses, those first that were given back first.

        Args:
            num_bytes: To be set free at least, if there is so much; None: all.
        """
        self._collect()
        free = [slot for slots in self._free.values() for slot in slots]
        unused = defaultdict(list)
        for slot in free:
            unused[slot.block].append(slot)
        for block in self._blocks.copy():
            if num_bytes is not None and num_bytes <= 0:
                return
            if len(unused[block]) == block.num_slots:
                num_bytes = None if num_bytes is None else num_bytes - block.num_bytes
                self._drop(block)

    def _drop(self, block: Block) -> None:
        self._blocks.remove(block)
        self._slots = [slot for slot in self._slots if slot.block is not block]
        kept = [slot for slot in self._free[block.capacity] if slot.block is not block]
        self._free[block.capacity] = deque(kept)

    def _collect(self) -> None:
        """Put slots that were given back in line: first what nobody can go on from."""
        while self._given_back:
            slot = self._given_back.popleft()
            self._blocks.remove(slot.block)  # the latest used last
            self._blocks.append(slot.block)
            line = self._free[slot.block.capacity]
            if _is_of_use(slot):
                line.append(slot)
            else:
                line.appendleft(slot)

    def _provide(self, count: int, capacity: int, taken: deque[Slot]) -> None:
        """Take so many slots; what others can go on from is kept as long as may be.

        What is taken is out of the line at once: room is made of what is in it.
        """
        free = self._free[capacity]
        while len(taken) < count and free and not _is_of_use(free[0]):
            taken.append(free.popleft())
        if self._bytes_over((count - len(taken)) * capacity) > 0:
            while len(taken) < count and free:
                taken.append(free.popleft())
        lacking = count - len(taken)
        if lacking > 0:
            self._add_block(lacking, capacity)
            taken += [self._free[capacity].popleft() for _ in range(lacking)]

    def _add_block(self, lacking: int, capacity: int) -> None:
        """Add slots: so many, and half of those in use, so that growing costs little."""
        same = sum(block.num_slots for block in self._blocks if block.capacity == capacity)
        num_slots = max(lacking, (same - len(self._free[capacity])) // 2)
        if self._bytes_over(num_slots * capacity) > 0:
            num_slots = lacking
            self.drop_unused(max(0, self._bytes_over(lacking * capacity)))
        block = Block(num_slots, capacity)
        if self._like is not None:
            self._allocate(block)
        self._blocks.append(block)
        fresh = [Slot(block, index) for index in range(num_slots)]
        self._slots += fresh
        self._free[capacity].extendleft(reversed(fresh))

    def _bytes_over(self, num_tokens: int) -> int:
        """Return how much would have to be let go of for so many more tokens."""
        if self.max_bytes is not None:
            return self.num_bytes + num_tokens * self.bytes_per_token - self.max_bytes
        num_unused = sum(slot.block.capacity for slots in self._free.values() for slot in slots)
        return num_unused * self.bytes_per_token - _MOST_KEPT

    def _allocate(self, block: Block) -> None:
        assert self._like is not None
        like = self._like
        if want_of_memory(lambda: block.allocate(like)) is not None:
            self.drop_unused()
            release_unused()
            block.allocate(like)


def _is_of_use(slot: Slot) -> bool:
    """Whether another text may go on from what it holds."""
    return not slot.stale and len(slot.ids) >= LEAST


def _runs(order: Sequence[int], slots: Sequence[Slot]) -> list[list[int]]:
    """Return the indices of slots, ordered by block and place, in runs of neighbours."""
    runs: list[list[int]] = []
    for index in order:
        before = slots[runs[-1][-1]] if runs else None
        slot = slots[index]
        if before and before.block is slot.block and before.index + 1 == slot.index:
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs
