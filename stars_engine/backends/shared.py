"""A decoder whose candidates share their prefix's keys and values."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from itertools import takewhile
from operator import itemgetter
from typing import Any

import torch

from stars_engine.backends.decoders import Branches, Decoder, Forward, Prefix
from stars_engine.kv_cache.cuda_graphs import StaticRows, StaticSteps
from stars_engine.kv_cache.forward_pass import Continuations, ReadingRows, SharingPass
from stars_engine.kv_cache.pool import ByLayer, Slot, SlotPool
from stars_engine.kv_cache.prefixes import LEAST, num_common
from stars_engine.kv_cache.weight_fingerprint import Change

MOST_TOKENS = 2048  # of prompts, read in one pass


class SharedPrefixDecoder(Decoder):
    """Keeps each prefix's keys and values once, in a slot, and reads only new tokens.

    Args:
        model: A causal language model of transformers whose attention goes through its
            `AttentionInterface`.
        context_len: Positions it has; None for no limit.
        static: Whether drafts are of fixed shapes, in CUDA graphs where there is a GPU.
    """

    def __init__(self, model: Any, context_len: int | None = None, *, static: bool = False) -> None:
        forward = Forward(model)
        self._forward = SharingPass(
            model,
            lambda ids, positions, cache: forward(ids, positions=positions, cache=cache),
            context_len,
        )
        # Without a fused kernel the scores of a pass are in memory, all at once.
        self._most_tokens = MOST_TOKENS if self._forward.device.type == "cpu" else MOST_TOKENS // 4
        self._pool = SlotPool()
        self._static = static
        self._steps = StaticSteps(self._forward, self._pool) if static else None
        self._latest: SharedBranches | None = None

    def start(self, prompts: Sequence[Sequence[int]]) -> list[Prefix]:
        """See `Decoder`."""
        self._forget_other_weights()
        prefixes = [
            self._hold(Prefix(slot.ids, torch.empty(0)), slot) for slot in self._recall(prompts)
        ]
        rest = [prompt[len(p.token_ids) :] for p, prompt in zip(prefixes, prompts, strict=True)]
        self._read(list(zip(prefixes, rest, strict=True)))
        return prefixes

    def copy(self, prefix: Prefix) -> Prefix:
        """See `Decoder`."""
        slot = self._copy(prefix.slot, len(prefix.token_ids))
        other = Prefix(prefix.token_ids, prefix.next_logits)
        return self._hold(other, slot)

    def extend(self, kept: Sequence[tuple[Prefix, Sequence[int]]]) -> None:
        """Copy what a candidate's row holds of the accepted tokens; read the rest, mostly one."""
        rest: list[tuple[Prefix, Sequence[int]]] = []
        for prefix, ids in kept:
            row, count = self._latest.find(prefix, ids) if self._latest else (0, 0)
            if self._latest and count:
                self._append(prefix, ids[:count], *self._latest.states(row, count))
            rest.append((prefix, ids[count:]))
        self._latest = None
        self._read(rest)

    def branch(self, rows: Sequence[Prefix], num_tokens: int) -> Branches:
        """See `Decoder`."""
        slots, lengths = [p.slot for p in rows], [len(p.token_ids) for p in rows]
        begun = self._steps.begin(slots, lengths, num_tokens) if self._steps else None
        self._latest = SharedBranches(self._forward, self._pool, rows, num_tokens, begun)
        return self._latest

    @property
    def bytes_per_token(self) -> int:
        """See `Decoder`."""
        return self._pool.bytes_per_token

    def limit_cache(self, max_bytes: int | None) -> None:
        """See `Decoder`. What is read of prompts is kept for others that begin alike."""
        self._pool.max_bytes = max_bytes

    def drop_unused(self) -> None:
        """See `Decoder`."""
        self._latest = None
        if self._steps:
            self._steps.forget()
        self._pool.drop_unused()

    def _hold(self, prefix: Prefix, slot: Slot) -> Prefix:
        prefix.slot = slot
        weakref.finalize(prefix, self._pool.give_back, slot)
        return prefix

    def _forget_other_weights(self) -> None:
        """What was read with other weights is of no use to new prompts."""
        change = self._forward.change(thoroughly=True)
        if change is Change.NONE:
            return
        if change is Change.KIND:  # what there is cannot stand beside what is to come
            self._pool = SlotPool(self._pool.max_bytes)
        self._pool.forget()
        self._latest = None
        if self._static:
            self._steps = StaticSteps(self._forward, self._pool)

    def _recall(self, prompts: Sequence[Sequence[int]]) -> list[Slot]:
        """Return a slot for each prompt, with the tokens of it that are there from earlier ones.

        A slot that nobody uses any more is taken over; from others is copied. The last token is
        read in any case, for its logits.
        """
        found: dict[int, Slot] = {}
        try:
            for index, prompt in enumerate(prompts):
                slot, known = self._find(list(prompt))
                if slot is None:
                    continue
                if self._pool.take_back(slot):
                    self._pool.trim(slot, known)
                else:
                    slot = self._copy(slot, known)
                found[index] = slot
            others = [index for index in range(len(prompts)) if index not in found]
            found |= zip(others, self._pool.take([len(prompts[i]) for i in others]), strict=True)
        except BaseException:
            for slot in found.values():
                self._pool.give_back(slot)
            raise
        return [found[index] for index in range(len(prompts))]

    def _find(self, prompt: list[int]) -> tuple[Slot | None, int]:
        """Return the slot that has most of a prompt, and how many tokens; None if hardly any."""
        common = {
            slot: num_common(slot.ids, prompt[:-1])
            for slot in self._pool.slots()
            if not slot.stale and slot.ids[:LEAST] == prompt[:LEAST]
        }
        best = max(common, key=lambda slot: common[slot], default=None)
        return (None, 0) if best is None or common[best] < LEAST else (best, common[best])

    def _copy(self, slot: Slot, length: int) -> Slot:
        [other] = self._pool.take([length])
        self._pool.copy(slot, other, length)
        return other

    def _append(self, prefix: Prefix, ids: Sequence[int], keys: ByLayer, values: ByLayer) -> None:
        self._pool.write(prefix.slot, keys, values, ids)
        prefix.token_ids = prefix.slot.ids

    def _read(self, new: Sequence[tuple[Prefix, Sequence[int]]]) -> None:
        """Append tokens to prefixes: equally many together, none beside a prefix without any."""
        groups: dict[tuple[bool, int], list[tuple[Prefix, Sequence[int]]]] = defaultdict(list)
        for prefix, ids in new:
            groups[bool(prefix.token_ids), len(ids)].append((prefix, ids))
        for (_, count), group in groups.items():
            size = max(1, self._most_tokens // max(1, count))
            for first in range(0, len(group), size):
                self._read_together(group[first : first + size], count)

    def _read_together(self, group: Sequence[tuple[Prefix, Sequence[int]]], count: int) -> None:
        """Append tokens to prefixes, equally many, in pieces that bound the memory of a pass."""
        prefixes = [prefix for prefix, _ in group]
        size = max(1, self._most_tokens // len(group))
        for start in range(0, count, size):
            chunks = [list(ids[start : start + size]) for _, ids in group]
            rows = SharedBranches(self._forward, self._pool, prefixes, len(chunks[0]))
            logits = rows.read(chunks)
            for row, (prefix, chunk) in enumerate(zip(prefixes, chunks, strict=True)):
                self._append(prefix, chunk, *rows.states(row, len(chunk)))
                prefix.next_logits = logits[row]


class SharedBranches:
    """Candidate rows on prefixes in slots.

    Args:
        read: Passes through the model.
        pool: Where the prefixes are.
        prefixes: Of each row.
        num_tokens: Tokens that each row reads at most.
        static: The same rows in fixed shapes, which read one token at a time.
    """

    def __init__(
        self,
        read: SharingPass,
        pool: SlotPool,
        prefixes: Sequence[Prefix],
        num_tokens: int,
        static: StaticRows | None = None,
    ) -> None:
        self._read = read
        self._prefixes = [weakref.ref(prefix) for prefix in prefixes]  # they may end before this
        self._static = static
        self._rows: ReadingRows = static or Continuations(
            pool,
            [prefix.slot for prefix in prefixes],
            [len(prefix.token_ids) for prefix in prefixes],
            num_tokens,
            read.device,
        )
        self._fed: list[torch.Tensor] = []  # (rows,) at each step

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """See `Branches`."""
        logits = self._static.step(tokens) if self._static else self.read(tokens[:, None])
        self._fed.append(tokens)
        return logits

    def read(self, ids: Sequence[Sequence[int]] | torch.Tensor) -> torch.Tensor:
        """Append `(rows, count)` ids; return the logits after the last, `(rows, vocab)`."""
        logits: torch.Tensor = self._read(self._rows, ids)
        return logits

    def find(self, prefix: Prefix, ids: Sequence[int]) -> tuple[int, int]:
        """Return the row of a prefix that has read most of some tokens, and how many.

        The last of them is left out: only what is read gives logits.
        """
        best = (0, 0)
        for row, tokens in enumerate(self._read_ids):
            if self._prefixes[row]() is prefix:
                pairs = zip(tokens, ids[:-1], strict=False)
                count = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
                best = max(best, (row, count), key=itemgetter(1))
        return best

    def states(self, row: int, count: int) -> tuple[ByLayer, ByLayer]:
        """Return the keys and values of a row's first tokens."""
        return self._rows.states(row, count)

    @cached_property
    def _read_ids(self) -> list[list[int]]:
        rows: list[list[int]] = torch.stack(self._fed, dim=1).tolist() if self._fed else []
        return rows
