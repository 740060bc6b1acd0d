"""Run a reward model on rows of token ids that mostly continue earlier rows.

The engine asks for the rewards of whole texts, step after step. The prefix cache holds the tokens
that were already computed, so that only new tokens are computed. Callers need not report which
candidate was accepted: later rows that continue it show this. Nothing is pinned between calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import Cache

from stars_engine.kv_cache.cache_entry import (
    MIN_PREFIX_LEN,
    CachedPrefix,
    Match,
    Outputs,
    UncommittedRows,
    common_prefix_len,
)
from stars_engine.kv_cache.forward_pass import EagerRows, ModelRunner
from stars_engine.kv_cache.grouping import split_where
from stars_engine.kv_cache.prefix_cache import PinnedPrefix, PrefixCache, PrefixRequest
from stars_engine.rewards.batching import CallAt, pad_columns
from stars_engine.rewards.encoding import EncodedInput

_MAX_TOKENS = 1024  # tokens of prefixes that are computed in one pass


class IncrementalRunner:
    """Runs a model on rows without recomputing the tokens that they share with earlier rows.

    Args:
        model: A causal transformers model.
        call: Calls the model.
        context_len: The context length; None for no limit.
        batch_size: Maximum rows per pass.
        head: A module that `call` uses in addition to the model, if any.

    Attributes:
        cache: The prefix cache.
        num_computed: Tokens computed so far, without padding.
        num_prefills: Rows computed from their beginning so far.
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
        self._runner = runner = ModelRunner(model, _with_cache(call), context_len, head)
        self._batch_size = batch_size
        self.cache = PrefixCache(
            self._extend, runner.weights_changed, has_handles=False, max_tokens=_MAX_TOKENS
        )
        self.num_computed = 0
        self.num_prefills = 0

    def run(self, rows: Sequence[EncodedInput]) -> list[torch.Tensor]:
        """Return the outputs at each row's points, `(points, ...)`, in order."""
        self.cache.invalidate_if_changed(thorough=False)
        matches = self._find(rows)
        known = {i: m for i, m in matches.items() if m.num_tokens == len(rows[i].ids)}
        pinned = self._claim({i: m for i, m in matches.items() if i not in known}, rows)
        fresh = self._compute_beginnings(rows, [i for i in range(len(rows)) if i not in matches])
        for index, each in fresh.items():
            row = rows[index]
            match = each.prefix.match(row.ids, row.points, accepted=False)
            if match.num_tokens == len(row.ids):
                known[index] = match
            else:
                pinned[index] = each
        outputs = {index: match.outputs for index, match in known.items()}
        lengths = {i: len(rows[i].ids) - len(each.prefix.token_ids) for i, each in pinned.items()}
        for batch in self._batches(lengths):
            prefixes = [pinned[index].prefix for index in batch]
            outputs |= zip(batch, self._run(prefixes, [rows[i] for i in batch]), strict=True)
        return [
            torch.stack([outputs[index][point] for point in row.points])
            for index, row in enumerate(rows)
        ]

    def memory_usage(self) -> dict[str, int]:
        """See `ReportsMemory`."""
        return {**self.cache.memory_usage(), "packed_weights": self._runner.packed_bytes}

    # --- finding prefixes ---

    def _find(self, rows: Sequence[EncodedInput]) -> dict[int, Match]:
        """Find the cached prefix of each row; rows without one are left out."""
        found: dict[int, Match] = {}
        last: Match | None = None
        for index, row in enumerate(rows):
            # Neighbors are mostly candidates of one segment.
            near = [last.prefix] if last is not None and last.prefix.begins(row.ids) else []
            last = self.cache.match(row.ids, row.points, near)
            if last is not None:
                found[index] = last
        return found

    def _compute_beginnings(
        self, rows: Sequence[EncodedInput], indices: Sequence[int]
    ) -> dict[int, PinnedPrefix]:
        """Compute the common prefixes of rows without a match; return the prefix of each row."""
        groups = list(
            split_where(indices, lambda group, i: not _is_alike(rows[group[0]].ids, rows[i].ids))
        )
        wanted = []
        for group in groups:
            first = rows[group[0]].ids
            size = min(common_prefix_len(first, rows[index].ids) for index in group)
            points = sorted({point for index in group for point in rows[index].points})
            wanted.append(PrefixRequest(first[:size], points))
        self.num_prefills += len(groups)
        pinned = self.cache.fetch(wanted) if wanted else []
        return {i: each for group, each in zip(groups, pinned, strict=True) for i in group}

    def _claim(
        self, matches: Mapping[int, Match], rows: Sequence[EncodedInput]
    ) -> dict[int, PinnedPrefix]:
        """Pin a prefix for each row. Rows that continue the same tokens share one."""
        groups: dict[tuple[int, int], list[int]] = {}
        for index, match in matches.items():
            groups.setdefault((id(match.prefix), id(match.row)), []).append(index)
        wanted = [
            (
                min((matches[index] for index in group), key=lambda match: match.num_tokens),
                max(len(rows[index].ids) for index in group),
            )
            for group in groups.values()
        ]
        pinned = self.cache.claim(wanted)
        return {i: each for group, each in zip(groups.values(), pinned, strict=True) for i in group}

    # --- passes ---

    def _batches(self, lengths: Mapping[int, int]) -> Iterator[list[int]]:
        """Return the row indices of each pass; no row is padded to much over twice its length."""

        def begins(batch: list[int], index: int) -> bool:
            too_long = lengths[index] > 2 * lengths[batch[0]] + MIN_PREFIX_LEN
            return too_long or len(batch) == self._batch_size

        return split_where(sorted(lengths, key=lambda index: lengths[index]), begins)

    def _run(self, prefixes: Sequence[CachedPrefix], rows: Sequence[EncodedInput]) -> list[Outputs]:
        """Compute the tokens of rows after their prefixes; return all known outputs."""
        starts = [len(prefix.token_ids) for prefix in prefixes]
        new = [row.ids[start:] for row, start in zip(rows, starts, strict=True)]
        points = [
            [point for point in row.points if point >= start]
            for row, start in zip(rows, starts, strict=True)
        ]
        columns = [[p - start for p in each] for each, start in zip(points, starts, strict=True)]
        width = max(map(len, new))
        padded = [[*ids, *[0] * (width - len(ids))] for ids in new]  # no token attends to it
        batch = EagerRows(self.cache.pool, prefixes, width, self._runner.device)
        found = self._runner(batch, padded, columns=columns)
        self.num_computed += sum(map(len, new))
        outputs: list[Outputs] = [
            {**prefix.outputs, **dict(zip(each, output, strict=False))}
            for prefix, each, output in zip(prefixes, points, found, strict=True)
        ]
        self.cache.add_uncommitted(prefixes, UncommittedRows(batch.kv, new), outputs)
        return outputs

    def _extend(
        self,
        prefixes: Sequence[CachedPrefix],
        ids: Sequence[list[int]],
        columns: Sequence[Sequence[int]],
    ) -> torch.Tensor:
        self.num_computed += sum(map(len, ids))
        outputs: torch.Tensor
        outputs = self._runner.extend(prefixes, ids, self.cache.pool, columns=columns)
        return outputs


def _is_alike(first: list[int], second: list[int]) -> bool:
    """Whether two rows look like candidates of one segment: they differ only in a short suffix."""
    common = common_prefix_len(first, second)
    return common > 0 and min(len(first), len(second)) - common <= max(64, common // 8)


def _with_cache(call: CallAt) -> Callable[..., torch.Tensor]:
    """Adapt a call to the signature that `ModelRunner` uses."""

    def run(
        ids: torch.Tensor, positions: torch.Tensor, cache: Cache, columns: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        inputs = {"input_ids": ids, "position_ids": positions}
        padded = pad_columns(columns, ids.device)
        return call(padded, past_key_values=cache, use_cache=True, **inputs)

    return run
