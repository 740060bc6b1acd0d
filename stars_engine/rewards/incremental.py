"""Reading rows of token ids that mostly go on from rows read before.

A reward model is asked for whole texts, round after round. What it has read of them stays in slots,
one *stem* for each answer, and only what is new is read: for an accepted segment's successors,
their own tokens. Nobody has to say which candidate was kept: rows that go on from one show it.
"""

from __future__ import annotations

import logging
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from transformers import Cache

from stars_engine.caching.checking import ROUNDING, window_of
from stars_engine.caching.common import LEAST, num_common
from stars_engine.caching.continuations import Continuations, SharingPass
from stars_engine.caching.own import OwnTokens
from stars_engine.caching.slots import Slot, SlotPool
from stars_engine.rewards.batching import in_batches
from stars_engine.rewards.sharing import Sharing

logger = logging.getLogger(__name__)

MAX_STEMS = 256  # answers that are remembered
_RETRACTED = 32  # tokens that another tokenizer may take back when text goes on
_MOST_BYTES = 1 << 30  # of answers that wait for another question
_REMEMBERED_PASSES = 8  # whose rows may still turn out to have been kept
_CHUNK = 1024  # tokens of a stem that are read at once

Ids = list[int]


class CallLast(Protocol):
    """Has a model read, and returns what comes of each row's last token."""

    def __call__(
        self, ids: torch.Tensor, positions: torch.Tensor, cache: Cache, last: torch.Tensor
    ) -> torch.Tensor:
        """Read `(rows, count)` ids; return `(rows, ...)`, of token `last[row]` of each row."""
        ...


class Tail(NamedTuple):
    """What a row had beyond its stem, and what came of its last token.

    Its keys and values are those of one row of a pass, for as long as that is remembered.
    """

    ids: Ids
    own: weakref.ref[OwnTokens]
    row: int
    output: torch.Tensor


@dataclass(eq=False)
class Stem:
    """Tokens that are kept in a slot, and the rows last read beyond them.

    Attributes:
        slot: Where their keys and values are.
        ids: The tokens.
        output: What came of the last one; None if that is not known.
        tails: Rows read beyond them.
    """

    slot: Slot
    ids: Ids
    output: torch.Tensor | None = None
    tails: list[Tail] = field(default_factory=list)


class Match(NamedTuple):
    """What is known of a row: `num` tokens, of a stem and perhaps one of its tails."""

    num: int
    stem: Stem
    tail: Tail | None


class IncrementalReader:
    """Reads rows; what they have in common with earlier ones is not read again.

    Args:
        model: A causal model of transformers.
        call: One pass through it.
        context_len: Positions it has; None for no limit.
        batch_size: Rows of a pass at most.

    Attributes:
        num_fed: Tokens read so far, padding not included.
        num_prefills: Stems read from the beginning so far.
    """

    def __init__(
        self, model: Any, call: CallLast, context_len: int | None, *, batch_size: int
    ) -> None:
        self._pass = SharingPass(model, call, context_len)
        self._batch_size = batch_size
        self._max_bytes = _MOST_BYTES
        self._pool = SlotPool()
        self._stems: list[Stem] = []  # the latest used last
        self._stamp = self._pass.stamp()
        self._passes: deque[OwnTokens] = deque(maxlen=_REMEMBERED_PASSES)  # tails need them
        self.num_fed = 0
        self.num_prefills = 0

    def read(self, rows: Sequence[Ids]) -> list[torch.Tensor]:
        """Return what comes of the last token of each row, in order."""
        self._forget_other_weights()
        try:
            stems = self._find_stems(rows)
        except BaseException:  # what is half read is of no use
            self._stamp = ()
            raise
        lengths = [len(row) - len(stem.ids) for row, stem in zip(rows, stems, strict=True)]
        results = {
            index: stem.output
            for index, stem in enumerate(stems)
            if lengths[index] == 0 and stem.output is not None
        }
        for batch in self._batches(lengths):
            new = [rows[index][len(stems[index].ids) :] for index in batch]
            found = self._read_on([stems[index] for index in batch], new)
            results |= zip(batch, found, strict=True)
        return [results[index] for index in range(len(rows))]

    def _forget_other_weights(self) -> None:
        stamp = self._pass.stamp()
        if stamp != self._stamp:
            self._stamp = stamp
            self._pool, self._stems = SlotPool(), []
            self._passes.clear()

    # --- one pass ---

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Yield the indices of rows to read together: none is padded to more than twice itself."""
        batch: list[int] = []
        to_read = [index for index, length in enumerate(lengths) if length]
        for index in sorted(to_read, key=lambda index: lengths[index]):
            too_long = batch and lengths[index] > 2 * lengths[batch[0]] + LEAST
            if too_long or len(batch) == self._batch_size:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _read_on(self, stems: Sequence[Stem], new: Sequence[Ids]) -> torch.Tensor:
        """Read tokens after stems, and keep them as tails."""
        width = max(map(len, new))
        rows = self._rows(stems, width)
        padded = [[*ids, *[0] * (width - len(ids))] for ids in new]  # behind: nobody sees it
        last = torch.tensor([len(ids) - 1 for ids in new], device=self._pass.device)
        output: torch.Tensor = self._pass(rows, padded, last=last)
        self._passes.append(rows.own)
        own = weakref.ref(rows.own)
        for row, (stem, ids) in enumerate(zip(stems, new, strict=True)):
            alive = [tail for tail in stem.tails if tail.own() is not None]
            stem.tails = [*alive, Tail(list(ids), own, row, output[row])]
            self.num_fed += len(ids)
        return output

    def _rows(self, stems: Sequence[Stem], width: int) -> Continuations:
        slots = [stem.slot for stem in stems]
        lengths = [len(stem.ids) for stem in stems]
        return Continuations(self._pool, slots, lengths, width, self._pass.device)

    # --- stems ---

    def _find_stems(self, rows: Sequence[Ids]) -> list[Stem]:
        """Return a stem for each row: tokens it begins with; all of them if the rest is known."""
        matches: list[Match | None] = []
        for row in rows:  # neighbours are mostly candidates of one segment
            recent = matches[-1] if matches else None
            same = recent and self._match_whole(recent.stem, row)
            matches.append(same or self._match(row))
        by_stem: dict[Stem, dict[int, list[int]]] = {}  # of each, its rows by the tail they know
        for index, match in enumerate(matches):
            if match is not None:
                by_stem.setdefault(match.stem, {}).setdefault(id(match.tail), []).append(index)
        found: dict[int, Stem] = {}
        for groups in by_stem.values():
            known = [
                (min(filter(None, (matches[i] for i in group)), key=_count), group)
                for group in groups.values()
            ]
            known.sort(key=lambda item: _count(item[0]))
            # Who knows most goes on in the stem's own slot, after the others have copied it.
            for match, group in known:
                stem = self._grow(match, in_place=group is known[-1][1])
                found |= dict.fromkeys(group, stem)
        fresh = [index for index, match in enumerate(matches) if match is None]
        for group in _alike(fresh, rows):
            found |= dict.fromkeys(group, self._begin([rows[index] for index in group]))
        self._forget_all_but(list(dict.fromkeys(found.values())))
        return [found[index] for index in range(len(rows))]

    def _match(self, row: Ids) -> Match | None:
        """Find the stem that has most of a row; None if none has enough."""
        whole = [m for stem in self._stems if (m := self._match_whole(stem, row)) is not None]
        best = max(whole, key=_count, default=None)
        if best is None or 2 * best.num < len(row):
            parts = [Match(num_common(stem.ids, row[:-1]), stem, None) for stem in self._stems]
            best = max([*whole, *parts], key=_count, default=None)
        enough = max(1, min(LEAST, len(row) // 4))
        return best if best is not None and best.num >= enough else None

    @staticmethod
    def _match_whole(stem: Stem, row: Ids) -> Match | None:
        """Match a row that begins with all of a stem."""
        size = len(stem.ids)
        most = len(row) if stem.output is not None else len(row) - 1
        if not 0 < size <= most or row[size - 1] != stem.ids[-1] or row[:size] != stem.ids:
            return None
        best = Match(size, stem, None)
        for tail in stem.tails:
            # The row has grown, so that candidate was kept.
            if len(row) > size + len(tail.ids) and tail.own() is not None:
                count = size + num_common(tail.ids, row[size:])
                best = max(best, Match(count, stem, tail), key=_count)
        return best

    def _grow(self, match: Match, *, in_place: bool) -> Stem:
        """Bring a stem to what is known of its rows."""
        count, stem, tail = match
        size = min(count, len(stem.ids))
        if not in_place or size < len(stem.ids) - _RETRACTED:
            stem = self._copy(stem, size)
        if count == len(stem.ids):
            return stem
        stem.tails, stem.output = [], None
        del stem.ids[size:]
        own = tail.own() if tail is not None else None
        if tail is not None and own is not None:
            new = tail.ids[: count - size]
            stem.slot.ids = stem.slot.ids[:size]
            self._pool.write(stem.slot, *own.first(tail.row, len(new)), new)
            stem.ids += new
            stem.output = tail.output if len(new) == len(tail.ids) else None
        return stem

    def _copy(self, stem: Stem, size: int) -> Stem:
        [slot] = self._pool.take([size])
        self._pool.copy(stem.slot, slot, size)
        output = stem.output if size == len(stem.ids) else None
        return self._keep(Stem(slot, stem.ids[:size], output))

    def _begin(self, rows: Sequence[Ids]) -> Stem:
        """Read what rows have in common, in a slot of its own."""
        first = rows[0]
        size = min([len(first), *(num_common(first, row) for row in rows[1:])])
        [slot] = self._pool.take([size])
        stem = self._keep(Stem(slot, []))
        for start in range(0, size, _CHUNK):
            ids = first[start : min(start + _CHUNK, size)]
            piece = self._rows([stem], len(ids))
            last = torch.tensor([len(ids) - 1], device=self._pass.device)
            [stem.output] = self._pass(piece, [ids], last=last)
            self._pool.write(slot, *piece.states(0, len(ids)), ids)
            stem.ids += ids
            self.num_fed += len(ids)
        self.num_prefills += 1
        return stem

    def _keep(self, stem: Stem) -> Stem:
        self._stems.append(stem)
        return stem

    def _forget_all_but(self, used: Sequence[Stem]) -> None:
        """Give up what has waited longest for a use, as far as there is too much of it."""
        waiting = [stem for stem in self._stems if stem not in used]
        num_bytes = [len(stem.ids) * self._pool.bytes_per_token for stem in waiting]
        cut = max(0, len(waiting) - max(0, MAX_STEMS - len(used)))
        while sum(num_bytes[cut:]) > self._max_bytes:
            cut += 1
        for stem in waiting[:cut]:
            self._pool.give_back(stem.slot)
        self._stems = [*waiting[cut:], *used]


def _alike(indices: Sequence[int], rows: Sequence[Ids]) -> Iterator[list[int]]:
    """Yield rows that are read for the first time, neighbours with much in common together."""
    group: list[int] = []
    for index in indices:
        if group and not _is_alike(rows[group[0]], rows[index]):
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def _is_alike(first: Ids, second: Ids) -> bool:
    """Whether rows look like candidates of one segment: what differs is short beside the rest."""
    common = num_common(first, second)
    return common > 0 and min(len(first), len(second)) - common <= max(64, common // 8)


def _count(match: Match) -> int:
    return match.num


def read_rows(
    reader: IncrementalReader | None,
    rows: Sequence[Ids],
    plain: Callable[[Sequence[Ids]], torch.Tensor],
    *,
    batch_size: int,
    sharing: Sharing,
) -> torch.Tensor:
    """Return what comes of the last token of each row, `(rows, ...)`, by a reader or plainly.

    Args:
        reader: Reads only what is new; None: every row is read whole.
        rows: At least one.
        plain: Reads some rows whole, as one batch.
        batch_size: Rows of a batch at most.
        sharing: Which rows may share a batch.
    """
    if reader is not None:
        return torch.stack(reader.read(rows))
    lengths = [len(row) for row in rows]
    return torch.stack(
        in_batches(rows, lengths, batch_size, lambda batch: list(plain(batch)), sharing)
    )


def choose_reader(
    model: Any,
    call: CallLast,
    plain: Callable[[Sequence[Ids]], torch.Tensor],
    *,
    context_len: int | None,
    batch_size: int,
    sharing: Sharing,
) -> tuple[IncrementalReader | None, str]:
    """Return a reader, if what it finds is what plain passes find, and how texts are read.

    Args:
        model: A causal model of transformers.
        call: One pass through it, with a cache.
        plain: Returns what comes of the last token of each whole row, `(rows, ...)`.
        context_len: Positions it has; None for no limit.
        batch_size: Rows of a pass at most.
        sharing: Which rows may share a pass.
    """
    if sharing is not Sharing.ANY:
        return None, "whole texts (it scores a text by what is beside it)"

    def make() -> IncrementalReader:
        return IncrementalReader(model, call, context_len, batch_size=batch_size)

    problem = _find_problem(make(), plain, model, context_len)
    if problem is not None:
        logger.warning("%s reads texts whole, which is slower: %s", type(model).__name__, problem)
        return None, f"whole texts ({problem})"
    return make(), "new tokens only"


@torch.inference_mode()
def _find_problem(
    reader: IncrementalReader,
    plain: Callable[[Sequence[Ids]], torch.Tensor],
    model: Any,
    context_len: int | None,
) -> str | None:
    """Compare with plain passes on random ids; return what is wrong."""
    generator = torch.Generator().manual_seed(0)
    size = 12 + window_of(model)
    if context_len is not None:
        size = min(size, context_len - 12)
    if size < 1:
        return "its context is too short to check"
    vocab_size = model.get_input_embeddings().weight.shape[0]

    def random_ids(count: int) -> Ids:
        ids: Ids = torch.randint(vocab_size, (count,), generator=generator).tolist()
        return ids

    kept = [random_ids(size), random_ids(size - size // 4)]
    try:
        for _ in range(3):
            rows = [[*ids, *random_ids(count)] for ids in kept for count in (4, 3, 4)]
            ours = torch.stack(reader.read(rows)).float()
            plainly = torch.cat([plain([row]) for row in rows]).float()
            difference = (ours - plainly).abs().max().item()
            scale = plainly.abs().max().item()
            if not difference <= ROUNDING.get(model.dtype, 6e-2) * max(scale, 0.1):
                return f"values differed by {difference:.2g} of {scale:.2g}"
            kept = [rows[1], rows[5]]
    except Exception as error:  # noqa: BLE001 - architectures fail in ways of their own
        return f"{type(error).__name__}: {error}"
    return None
