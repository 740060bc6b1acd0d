"""One entry of the prefix cache: a prefix, what was computed at its tokens, and rows beyond it.

`prefix_cache` finds, extends and evicts entries; this module knows a single one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from stars_engine.hidden_states.probes import StepOutput
from stars_engine.kv_cache.block import Block, ByLayer
from stars_engine.kv_cache.scratch import ScratchKV

MIN_PREFIX_LEN = 16  # tokens in common that are worth a copy

Outputs = Mapping[int, Any]  # what a model returned at positions of a row


def common_prefix_len(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens two sequences of one type have in common at their beginning."""
    most = min(len(first), len(second))
    if first[:most] == second[:most]:
        return most
    # Slices compare at the speed of C: bisect on where they begin to differ.
    return bisect_left(range(most), 1, key=lambda size: first[: size + 1] != second[: size + 1])


class CachedPrefix:
    """Tokens whose KV is in a slot, and what is remembered of them.

    Attributes:
        block: The block of its slot. It changes when the prefix outgrows the slot.
        index: The row of its slot in the block.
        token_ids: The tokens.
        outputs: What the model returned at some of their positions. Replaced, never modified.
        uncommitted: Rows computed beyond them; one may turn out to continue the prefix.
        is_useful: Whether another text may continue it, as judged when it was unpinned.
    """

    __slots__ = (
        "__weakref__",
        "block",
        "index",
        "is_useful",
        "outputs",
        "token_ids",
        "uncommitted",
    )

    def __init__(self, block: Block, index: int) -> None:
        self.block, self.index = block, index
        self.token_ids: list[int] = []
        self.outputs: Outputs = {}
        self.uncommitted: list[UncommittedRow] = []
        self.is_useful = False

    def follows(self, other: CachedPrefix) -> bool:
        """Whether its slot is the next one after another in the same block."""
        return self.block is other.block and self.index == other.index + 1

    def begins(self, ids: list[int]) -> bool:
        """Whether a row begins with the whole prefix."""
        size = len(self.token_ids)
        # Compare the last token first, which is mostly enough.
        return (
            0 < size <= len(ids)
            and ids[size - 1] == self.token_ids[-1]
            and ids[:size] == self.token_ids
        )

    def match(self, ids: list[int], points: Sequence[int], *, accepted: bool) -> Match:
        """Find how much of a row is known, from the prefix and the rows computed beyond it.

        Args:
            ids: The row.
            points: Positions in it whose outputs are needed.
            accepted: Whether `ids` are final. If not, the row is a candidate, and an uncommitted
                row only counts if `ids` continue it: siblings begin alike by chance.
        """
        size = common_prefix_len(self.token_ids, ids)
        num_tokens = _num_known(points, size, self.outputs)
        best = Match(num_tokens, num_tokens, self, None, self.outputs)
        if size < len(self.token_ids) or size == len(ids):
            return best
        rest = ids[size:]
        for row in self.uncommitted:
            common = common_prefix_len(row.token_ids, rest)
            num_tokens = _num_known(points, size + common, row.outputs)
            usable = row.has_kv and (accepted or _continues(row.token_ids, rest, common))
            if (usable or num_tokens == len(ids)) and num_tokens > best.num_tokens:
                best = Match(num_tokens, min(num_tokens, size), self, row, row.outputs)
        return best

    def append(self, ids: Sequence[int]) -> None:
        """Note that the KV of more tokens is stored. Rows beyond the old end are forgotten."""
        self.token_ids = [*self.token_ids, *ids]
        self.uncommitted = []

    def cut(self, length: int) -> None:
        """Forget all but the first tokens."""
        if length < len(self.token_ids):
            self.token_ids = self.token_ids[:length]
            self.outputs = outputs_before(self.outputs, length)
            self.uncommitted = []


class UncommittedRows:
    """Rows computed beyond prefixes in one pass, or step by step; so far part of no prefix.

    Args:
        kv: Their KV.
        token_ids: Their tokens, if known beforehand; otherwise see `append`.

    Attributes:
        kv: Their KV; None once it is freed.
        last_output: What the model returned at their last tokens; None if it is not kept.
    """

    def __init__(self, kv: ScratchKV, token_ids: Sequence[list[int]] | None = None) -> None:
        self.kv: ScratchKV | None = kv
        self.last_output: StepOutput | None = None
        self._token_ids = token_ids
        self._steps: list[torch.Tensor] = []  # (rows,) each

    def append(self, tokens: torch.Tensor) -> None:
        """Note one more token of each row, `(rows,)`. It may stay on its device."""
        self._steps.append(tokens)
        self._token_ids = None

    def token_ids(self, row: int) -> list[int]:
        """Return the tokens of a row. Fetches them from their device."""
        if self._token_ids is None:
            self._token_ids = torch.stack(self._steps, dim=1).tolist() if self._steps else []
        return self._token_ids[row] if self._token_ids else []

    def drop(self) -> None:
        """Free what was computed."""
        self.kv = self.last_output = None
        self._steps = []

    @property
    def num_steps(self) -> int:
        """Tokens noted one by one."""
        return len(self._steps)

    @property
    def num_tokens(self) -> int:
        """Tokens that the KV has room for."""
        return 0 if self.kv is None else self.kv.num_rows * self.kv.capacity


@dataclass(frozen=True, slots=True, eq=False)
class UncommittedRow:
    """One row beyond a prefix.

    Attributes:
        rows: The rows computed together with it.
        index: Which of them it is.
        start: Tokens of its prefix.
        given: What the model returned, at positions of the whole row, prefix included.
    """

    rows: UncommittedRows
    index: int
    start: int
    given: Outputs

    @property
    def outputs(self) -> Outputs:
        """What is known of the model's outputs, at positions of the whole row."""
        last = self.rows.last_output
        if last is None:
            return self.given
        return {**self.given, self.start + self.rows.num_steps - 1: last.row(self.index)}

    @property
    def token_ids(self) -> list[int]:
        """Its tokens."""
        return self.rows.token_ids(self.index)

    @property
    def has_kv(self) -> bool:
        """Whether its KV is still there."""
        return self.rows.kv is not None

    def first(self, count: int) -> tuple[ByLayer, ByLayer]:
        """Return keys and values of its first tokens, by layer."""
        assert self.rows.kv is not None
        return self.rows.kv.first(self.index, count)


class Match(NamedTuple):
    """How much of a row is known.

    Attributes:
        num_tokens: Tokens that need not be computed again, and outputs of all points among them.
        num_cached: How many of them are in the prefix.
        prefix: Where these are.
        row: Where the others are, if there are any.
        outputs: What the model returned at positions of the row.
    """

    num_tokens: int
    num_cached: int
    prefix: CachedPrefix
    row: UncommittedRow | None
    outputs: Outputs


def outputs_before(outputs: Outputs, length: int) -> Outputs:
    """Return the outputs at the first positions."""
    return {point: output for point, output in outputs.items() if point < length}


def _num_known(points: Sequence[int], common: int, outputs: Outputs) -> int:
    """Return how many of the tokens in common need not be computed again for their outputs."""
    unknown = (point for point in points if point < common and point not in outputs)
    return next(unknown, common)


def _continues(before: list[int], after: list[int], common: int) -> bool:
    """Whether the second row is the first one grown longer, so that this candidate was accepted.

    Most of an accepted candidate is in its successors, except for what a template or a step marker
    puts behind both, and for what another tokenizer merges differently.
    """
    if len(after) <= len(before):
        return False
    behind = common_prefix_len(before[common:][::-1], after[common:][::-1])
    return 2 * common >= len(before) - behind
