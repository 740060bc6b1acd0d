"""Reading rows of token ids that mostly go on from rows read before.

A reward model is asked for whole texts, round after round. What it has read of them stays in slots,
one *stem* for each answer, and only what is new is read: for an accepted segment's successors,
their own tokens. Nobody has to say which candidate was kept: rows that go on from one show it.
"""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import Cache

from stars_engine.kv_cache.forward_pass import Continuations, SharingPass
from stars_engine.kv_cache.pool import SlotPool
from stars_engine.kv_cache.prefixes import LEAST, num_common
from stars_engine.kv_cache.scratch import OwnTokens
from stars_engine.kv_cache.weight_fingerprint import Change
from stars_engine.rewards.batching import CallAt, pad_columns
from stars_engine.rewards.cached_prefixes import (
    Ids,
    Match,
    Outputs,
    Stem,
    Tail,
    alike,
    before,
    count_of,
)
from stars_engine.rewards.encoding import Row

logger = logging.getLogger(__name__)

MAX_STEMS = 256  # answers that are remembered
_RETRACTED = 32  # tokens that another tokenizer may take back when text goes on
_MOST_BYTES = 1 << 30  # of answers that wait for another question
_REMEMBERED_PASSES = 8  # whose rows may still turn out to have been kept
_CHUNK = 1024  # tokens of a stem that are read at once


class IncrementalReader:
    """Reads rows; what they have in common with earlier ones is not read again.

    Args:
        model: A causal model of transformers.
        call: One pass through it.
        context_len: Positions it has; None for no limit.
        batch_size: Rows of a pass at most.
        head: What the call has beside the model, if anything.

    Attributes:
        num_fed: Tokens read so far, padding not included.
        num_prefills: Stems read from the beginning so far.
    """

    def __init__(
        self,
        model: Any,
        call: CallAt,
        context_len: int | None,
        *,
        batch_size: int,
        head: torch.nn.Module | None = None,
    ) -> None:
        self._pass = SharingPass(model, _with_cache(call), context_len, head)
        self._batch_size = batch_size
        self._max_bytes = _MOST_BYTES
        self._pool = SlotPool()
        self._stems: list[Stem] = []  # the latest used last
        self._passes: deque[OwnTokens] = deque(maxlen=_REMEMBERED_PASSES)  # tails need them
        self.num_fed = 0
        self.num_prefills = 0

    def read(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        """Return what comes of each row's points, `(points, ...)`, in order."""
        self.look_at_weights(thoroughly=False)
        try:
            matches = self._match_all(rows)
            known = {i: m for i, m in enumerate(matches) if m.num == len(rows[i].ids)}
            outputs = {index: match.outputs for index, match in known.items()}
            stems = self._grow_all({i: m for i, m in enumerate(matches) if i not in known})
        except BaseException:  # what is half read is of no use
            self._begin_anew()
            raise
        used = [*(match.stem for match in known.values()), *stems.values()]
        self._forget_all_but(list(dict.fromkeys(used)))
        lengths = {index: len(rows[index].ids) - len(stem.ids) for index, stem in stems.items()}
        for batch in self._batches(lengths):
            read = self._read_on([stems[i] for i in batch], [rows[i] for i in batch])
            outputs |= zip(batch, read, strict=True)
        return [
            torch.stack([outputs[index][point] for point in row.points])
            for index, row in enumerate(rows)
        ]

    def look_at_weights(self, *, thoroughly: bool = True) -> None:
        """Forget what was read with other weights; see `Watch.change`."""
        if self._pass.change(thoroughly=thoroughly) is not Change.NONE:
            self._begin_anew()

    def _begin_anew(self) -> None:
        self._pool, self._stems = SlotPool(self._pool.max_bytes), []
        self._passes.clear()

    # --- memory ---

    @property
    def bytes_per_token(self) -> int:
        """Memory of what is kept of one token; 0 before anything was read."""
        return self._pool.bytes_per_token

    def limit_cache(self, max_bytes: int | None) -> None:
        """Bound what is kept of texts; None: as much as is usual."""
        self._pool.max_bytes = max_bytes
        self._max_bytes = _MOST_BYTES if max_bytes is None else max_bytes

    def drop_unused(self) -> None:
        """Let go of everything: whatever is asked for again is read again."""
        self._passes.clear()
        self._forget_all_but([], max_stems=0)
        self._pool.drop_unused()

    # --- one pass ---

    def _batches(self, lengths: Mapping[int, int]) -> Iterator[list[int]]:
        """Yield the indices of rows to read together: none is padded to more than twice itself."""
        batch: list[int] = []
        for index in sorted(lengths, key=lambda index: lengths[index]):
            too_long = batch and lengths[index] > 2 * lengths[batch[0]] + LEAST
            if too_long or len(batch) == self._batch_size:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _read_on(self, stems: Sequence[Stem], rows: Sequence[Row]) -> list[Outputs]:
        """Read rows beyond their stems, and keep that as tails."""
        starts = [len(stem.ids) for stem in stems]
        new = [row.ids[start:] for row, start in zip(rows, starts, strict=True)]
        points = [
            [point for point in row.points if point >= start]
            for row, start in zip(rows, starts, strict=True)
        ]
        read, outputs = self._read_after(stems, new, points)
        self._passes.append(read.own)
        own = weakref.ref(read.own)
        for index, (stem, ids) in enumerate(zip(stems, new, strict=True)):
            alive = [tail for tail in stem.tails if tail.own() is not None]
            stem.tails = [*alive, Tail(ids, own, index, outputs[index])]
        return outputs

    def _read_after(
        self, stems: Sequence[Stem], new: Sequence[Ids], points: Sequence[Sequence[int]]
    ) -> tuple[Continuations, list[Outputs]]:
        """Read tokens after stems; add what comes of some, one at least, to what stems know."""
        width = max(map(len, new))
        starts = [len(stem.ids) for stem in stems]
        rows = Continuations(
            self._pool, [stem.slot for stem in stems], starts, width, self._pass.device
        )
        padded = [[*ids, *[0] * (width - len(ids))] for ids in new]  # behind: nobody sees it
        columns = [[p - start for p in each] for each, start in zip(points, starts, strict=True)]
        found = self._pass(rows, padded, columns=pad_columns(columns, self._pass.device))
        self.num_fed += sum(map(len, new))
        return rows, [
            {**stem.outputs, **dict(zip(each, output[: len(each)], strict=True))}
            for stem, each, output in zip(stems, points, found, strict=True)
        ]

    # --- stems ---

    def _match_all(self, rows: Sequence[Row]) -> list[Match]:
        """Find what is known of each row; where that is not enough, read its beginning."""
        found: dict[int, Match] = {}
        recent: Match | None = None
        for index, row in enumerate(rows):
            # Neighbours are mostly candidates of one segment.
            near = [recent.stem] if recent is not None and recent.stem.begins(row) else []
            recent = self._match(row, near) or self._match(row, self._stems)
            if recent is not None:
                found[index] = recent
        fresh = [index for index in range(len(rows)) if index not in found]
        for group in alike(fresh, rows):
            stem = self._begin([rows[index] for index in group])
            found |= {index: stem.match(rows[index]) for index in group}
        return [found[index] for index in range(len(rows))]

    @staticmethod
    def _match(row: Row, stems: Sequence[Stem]) -> Match | None:
        """Find the stem that has most of a row; None if none has enough."""
        size = len(row.ids)
        whole = [stem.match(row) for stem in stems if stem.begins(row)]
        best = max(whole, key=count_of, default=None)
        if best is None or 2 * best.num < size:
            parts = [stem.match(row) for stem in stems]
            best = max([*whole, *parts], key=count_of, default=None)
        return best if best is not None and best.num >= max(1, min(LEAST, size // 4)) else None

    def _grow_all(self, matches: Mapping[int, Match]) -> dict[int, Stem]:
        """Return a stem for each row: tokens that it begins with, and goes on from."""
        by_stem: dict[Stem, dict[int, list[int]]] = {}  # of each, its rows by the tail they know
        for index, match in matches.items():
            by_stem.setdefault(match.stem, {}).setdefault(id(match.tail), []).append(index)
        found: dict[int, Stem] = {}
        for groups in by_stem.values():
            known = [
                (min((matches[index] for index in group), key=count_of), group)
                for group in groups.values()
            ]
            known.sort(key=lambda item: count_of(item[0]))
            # Who knows most goes on in the stem's own slot, after the others have copied it.
            for match, group in known:
                stem = self._grow(match, in_place=group is known[-1][1])
                found |= dict.fromkeys(group, stem)
        return found

    def _grow(self, match: Match, *, in_place: bool) -> Stem:
        """Bring a stem to what is known of its rows."""
        count, stem, tail = match
        outputs = match.outputs
        size = min(count, len(stem.ids))
        if not in_place or size < len(stem.ids) - _RETRACTED:
            stem = self._copy(stem, size)
        if count == len(stem.ids):
            return stem
        self._pool.trim(stem.slot, size)
        own = tail.own() if tail is not None else None
        if tail is not None and own is not None:
            new = tail.ids[: count - size]
            self._pool.write(stem.slot, *own.first(tail.row, len(new)), new)
        stem.tails, stem.outputs = [], before(outputs, len(stem.ids))
        return stem

    def _copy(self, stem: Stem, size: int) -> Stem:
        [slot] = self._pool.take([size])
        self._pool.copy(stem.slot, slot, size)
        return self._keep(Stem(slot, before(stem.outputs, size)))

    def _begin(self, rows: Sequence[Row]) -> Stem:
        """Read what rows have in common, in a slot of its own."""
        first = rows[0].ids
        size = min([len(first), *(num_common(first, row.ids) for row in rows[1:])])
        points = {point for row in rows for point in row.points}
        [slot] = self._pool.take([size])
        stem = self._keep(Stem(slot))
        for start in range(0, size, _CHUNK):
            end = min(start + _CHUNK, size)
            wanted = sorted(points.intersection(range(start, end)) | {end - 1})  # one at least
            read, [outputs] = self._read_after([stem], [first[start:end]], [wanted])
            self._pool.write(slot, *read.states(0, end - start), first[start:end])
            stem.outputs = outputs
        self.num_prefills += 1
        return stem

    def _keep(self, stem: Stem) -> Stem:
        self._stems.append(stem)
        return stem

    def _forget_all_but(self, used: Sequence[Stem], max_stems: int = MAX_STEMS) -> None:
        """Give up what has waited longest for a use, as far as there is too much of it."""
        waiting = [stem for stem in self._stems if stem not in used]
        num_bytes = [len(stem.ids) * self._pool.bytes_per_token for stem in waiting]
        cut = max(0, len(waiting) - max(0, max_stems - len(used)))
        while sum(num_bytes[cut:]) > self._max_bytes:
            cut += 1
        for stem in waiting[:cut]:
            self._pool.give_back(stem.slot)
        self._stems = [*waiting[cut:], *used]


def _with_cache(call: CallAt) -> Callable[..., torch.Tensor]:
    """Return a pass as `SharingPass` makes it."""

    def read(
        ids: torch.Tensor, positions: torch.Tensor, cache: Cache, columns: torch.Tensor
    ) -> torch.Tensor:
        inputs = {"input_ids": ids, "position_ids": positions}
        return call(columns, past_key_values=cache, use_cache=True, **inputs)

    return read
