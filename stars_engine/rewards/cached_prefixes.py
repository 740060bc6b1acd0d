"""What is known of rows that were read: tokens that are kept, and what came of some of them.

Outputs are known by position. So what need not be read again of a row ends where its tokens begin
to differ, or before the first of its points whose output was never asked for.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from stars_engine.kv_cache.pool import Slot
from stars_engine.kv_cache.prefixes import num_common
from stars_engine.kv_cache.scratch import OwnTokens
from stars_engine.rewards.encoding import Row

Ids = list[int]
Outputs = Mapping[int, torch.Tensor]  # what came of tokens, by their position in the row


class Tail(NamedTuple):
    """What a row had beyond its stem, and what came of the whole row's tokens.

    Its keys and values are those of one row of a pass, for as long as that is remembered.
    """

    ids: Ids
    own: weakref.ref[OwnTokens]
    row: int
    outputs: Outputs


@dataclass(eq=False)
class Stem:
    """Tokens that are kept in a slot, and the rows last read beyond them.

    Attributes:
        slot: Where their keys and values are.
        outputs: What came of some of them; replaced, never changed.
        tails: Rows read beyond them.
    """

    slot: Slot
    outputs: Outputs = field(default_factory=dict)
    tails: list[Tail] = field(default_factory=list)

    @property
    def ids(self) -> Ids:
        """The tokens."""
        return self.slot.ids

    def begins(self, row: Row) -> bool:
        """Whether a row begins with all of it."""
        size = len(self.ids)
        # The last token first: mostly that is enough to know.
        return (
            0 < size <= len(row.ids)
            and row.ids[size - 1] == self.ids[-1]
            and row.ids[:size] == self.ids
        )

    def match(self, row: Row) -> Match:
        """Find what is known of a row by the stem and its tails."""
        size = num_common(self.ids, row.ids)
        best = Match(_num_known(row, size, self.outputs), self, None)
        if size < len(self.ids):
            return best
        rest = row.ids[size:]
        for tail in self.tails:
            common = num_common(tail.ids, rest)
            num = _num_known(row, size + common, tail.outputs)
            kept = tail.own() is not None and _has_grown(tail.ids, rest, common)
            if kept or num == len(row.ids):
                best = max(best, Match(num, self, tail), key=count_of)
        return best


class Match(NamedTuple):
    """What is known of a row: `num` tokens, of a stem and perhaps one of its tails."""

    num: int
    stem: Stem
    tail: Tail | None

    @property
    def outputs(self) -> Outputs:
        """What came of tokens; of those before `num`, at each of the row's points."""
        return self.stem.outputs if self.tail is None else self.tail.outputs


def count_of(match: Match) -> int:
    """Return how many tokens are known; a key to sort by."""
    return match.num


def before(outputs: Outputs, size: int) -> Outputs:
    """Return what came of the first tokens."""
    return {point: output for point, output in outputs.items() if point < size}


def alike(indices: Sequence[int], rows: Sequence[Row]) -> Iterator[list[int]]:
    """Yield rows that are read for the first time, neighbours with much in common together."""
    group: list[int] = []
    for index in indices:
        if group and not _is_alike(rows[group[0]].ids, rows[index].ids):
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def _is_alike(first: Ids, second: Ids) -> bool:
    """Whether rows look like candidates of one segment: what differs is short beside the rest."""
    common = num_common(first, second)
    return common > 0 and min(len(first), len(second)) - common <= max(64, common // 8)


def _has_grown(before: Ids, after: Ids, common: int) -> bool:
    """Whether the second is the first grown longer, so that candidate was kept.

    Siblings begin alike by chance. Most of a candidate that was kept is there, but for what a
    template or a step's marker puts behind either, and for what another tokenizer took back.
    """
    if len(after) <= len(before):
        return False
    behind = num_common(before[common:][::-1], after[common:][::-1])
    return 2 * common >= len(before) - behind


def _num_known(row: Row, common: int, outputs: Outputs) -> int:
    """Return how many tokens need not be read again, of those that a row has in common."""
    unknown = (point for point in row.points if point < common and point not in outputs)
    return next(unknown, common)
