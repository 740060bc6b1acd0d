"""The prefix cache of a model: token prefixes and their KV, found and extended (`pool.py` evicts).

A caller asks for a prefix. Its longest cached beginning is found; tokens of an uncommitted row that
continue it are adopted without being computed again; the missing tokens are computed. Prefill,
accepting a candidate and coming back after preemption are this one path.

A prefix is pinned as long as its holder keeps the `PinnedPrefix`. Prefixes that are not pinned stay
until their store needs the memory. Candidates are rows computed beyond a prefix: rejecting one
takes no action.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterable, Sequence
from operator import attrgetter
from typing import NamedTuple

import torch

from stars_engine.hidden_states.probes import StepOutput
from stars_engine.kv_cache.cache_entry import (
    MIN_PREFIX_LEN,
    CachedPrefix,
    Match,
    Outputs,
    UncommittedRow,
    UncommittedRows,
    outputs_before,
)
from stars_engine.kv_cache.grouping import first_equal
from stars_engine.kv_cache.pool import SlotPool
from stars_engine.kv_cache.prefill import Extend, PrefixTarget, compute_missing
from stars_engine.kv_cache.recent_rows import RecentRows
from stars_engine.problems import run_to_end

_MAX_RETRACTED = 32  # tokens that another tokenizer may merge differently when text goes on


class PinnedPrefix:
    """Keeps a prefix from eviction until its holder drops this object.

    Attributes:
        prefix: The prefix.
        pool: Where it is.
    """

    __slots__ = ("__weakref__", "pool", "prefix")

    def __init__(self, pool: SlotPool, prefix: CachedPrefix) -> None:
        self.pool, self.prefix = pool, prefix
        weakref.finalize(self, pool.unpin, prefix).atexit = False

    @property
    def last_output(self) -> torch.Tensor:
        """The logits after the last token, `(vocab,)`."""
        return self._last.logits

    @property
    def last_features(self) -> torch.Tensor | None:
        """The features of the last token, `(features,)`; None without probes."""
        return self._last.features

    @property
    def _last(self) -> StepOutput:
        output: StepOutput = self.prefix.outputs[len(self.prefix.token_ids) - 1]
        return output


class PrefixRequest(NamedTuple):
    """A prefix to have in the cache.

    Attributes:
        token_ids: Its tokens.
        points: Positions whose outputs are needed.
        pinned: What the caller holds of it, if anything: it makes the search short.
    """

    token_ids: list[int]
    points: Sequence[int]
    pinned: PinnedPrefix | None = None


class PrefixCache:
    """Prefixes of one model.

    Args:
        extend: Computes tokens.
        weights_changed: Returns whether the model's weights have changed since it was last called.
        has_handles: Whether callers pin what they still need, ask for accepted tokens only, and
            need no output but the last, as requests to a language model do. If not, nothing says
            which candidate was accepted or which prefix is still in use: rows that continue one
            show it, and a prefix is copied rather than cut.
        max_tokens: Tokens computed in one pass.

    Attributes:
        pool: Where the KV is.
        num_resets: How often everything was forgotten.
    """

    def __init__(
        self,
        extend: Extend,
        weights_changed: Callable[..., bool],
        *,
        has_handles: bool = True,
        max_tokens: int,
    ) -> None:
        self._extend, self._weights_changed = extend, weights_changed
        self._has_handles, self._max_tokens = has_handles, max_tokens
        self._recent = RecentRows()
        self.pool = self._new_pool()
        self.num_resets = 0

    def fetch(self, requests: Sequence[PrefixRequest]) -> list[PinnedPrefix]:
        """Return prefixes with all their tokens and outputs, each for one holder.

        Raises:
            RuntimeError: Out of memory. What is pinned stays valid, and nothing is lost but time.
        """
        return run_to_end(self.fetch_in_parts(requests))

    def fetch_in_parts(
        self, requests: Sequence[PrefixRequest]
    ) -> Generator[int, None, list[PinnedPrefix]]:
        """Do as `fetch`; other prefixes may be fetched between two parts.

        Yields:
            How many passes are left, between two passes.
        """
        while True:
            pool = self.pool
            found = yield from self._fetch(requests)
            if self.pool is pool:  # else, the weights have changed meanwhile
                return found

    def _fetch(self, requests: Sequence[PrefixRequest]) -> Generator[int, None, list[PinnedPrefix]]:
        own = self._own(requests)
        if None in own:
            self.invalidate_if_changed()
            own = self._own(requests)
        # Equal prefixes are computed once, then copied.
        leaders = first_equal(
            pinned or (tuple(ids), tuple(points))
            for (ids, points, _), pinned in zip(requests, own, strict=True)
        )
        computed = [index for index, leader in enumerate(leaders) if index == leader]
        lengths = [len(request.token_ids) for request in requests]
        wanted = [(self._find(requests[i], own[i]), lengths[i]) for i in computed]
        found = dict(zip(computed, self.claim(wanted, own), strict=True))
        pool = self.pool
        missing = compute_missing(
            [PrefixTarget(found[index].prefix, *requests[index][:2]) for index in computed],
            self._extend,
            max_tokens=self._max_tokens,
            keeps_outputs=not self._has_handles,
        )
        for num_left in missing:
            yield num_left
            if self.pool is not pool:
                return []
        copied = [index for index, leader in enumerate(leaders) if index != leader]
        wanted = [
            (self._match(found[leaders[index]].prefix, *requests[index][:2]), lengths[index])
            for index in copied
        ]
        found |= zip(copied, self.claim(wanted), strict=True)
        return [found[index] for index in range(len(requests))]

    def match(
        self, ids: list[int], points: Sequence[int], near: Iterable[CachedPrefix] = ()
    ) -> Match | None:
        """Return the prefix that most is known of a row from; None if too little is.

        Args:
            ids: The row.
            points: Positions whose outputs are needed.
            near: Prefixes to try first.
        """
        size = len(ids)
        least = MIN_PREFIX_LEN if self._has_handles else max(1, min(MIN_PREFIX_LEN, size // 4))
        for prefixes in (near, self.pool.prefixes()):
            alike = [each for each in prefixes if _begin_alike(each.token_ids[:least], ids)]
            found = [self._match(each, ids, points) for each in alike if each.begins(ids)]
            best = max(found, key=_num_tokens, default=None)
            if best is None or 2 * best.num_tokens < size:
                found += [self._match(each, ids, points) for each in alike]
                best = max(found, key=_num_tokens, default=None)
            if best is not None and best.num_tokens >= least:
                return best
        return None

    def claim(
        self,
        wanted: Sequence[tuple[Match | None, int]],
        own: Iterable[PinnedPrefix | None] = (),
    ) -> list[PinnedPrefix]:
        """Pin prefixes with exactly the tokens that are known of rows; the caller may change them.

        A prefix that is of no use to others is changed in place, others are copied. Uncommitted
        tokens are adopted.

        Args:
            wanted: What is known of each row, if anything, and the tokens it will have.
            own: What the caller has pinned already.
        """
        pool = self.pool
        # All sources are pinned first: room for one must not be made of another.
        pinned = {each.prefix: each for each in own if each is not None}
        for source in dict.fromkeys(match.prefix for match, _ in wanted if match is not None):
            if pool.pin(source):
                pinned[source] = PinnedPrefix(pool, source)
        matches = [(index, match) for index, (match, _) in enumerate(wanted) if match is not None]
        # The row of which most is known gets the prefix itself; others find in it what they copy.
        matches.sort(key=lambda item: -item[1].num_tokens)
        found: dict[int, PinnedPrefix] = {}
        for index, match in matches:
            if match.prefix in pinned and self._may_cut(match):
                found[index] = pinned.pop(match.prefix)
        others = [index for index in range(len(wanted)) if index not in found]
        fresh = pool.allocate([wanted[index][1] for index in others])
        found |= {i: PinnedPrefix(pool, prefix) for i, prefix in zip(others, fresh, strict=True)}
        for index, match in matches:
            self._bring(found[index].prefix, match)
        return [found[index] for index in range(len(wanted))]

    def add_uncommitted(
        self,
        prefixes: Sequence[CachedPrefix],
        rows: UncommittedRows,
        outputs: Sequence[Outputs] | None = None,
    ) -> None:
        """Remember rows computed beyond prefixes, one for each, in case one is accepted."""
        for index, prefix in enumerate(prefixes):
            alive = [row for row in prefix.uncommitted if row.has_kv]
            known = {} if outputs is None else outputs[index]
            row = UncommittedRow(rows, index, len(prefix.token_ids), known)
            prefix.uncommitted = [*alive, row]
        self._recent.add(rows, self.pool.bytes_per_token, self.pool.max_bytes)

    def note_use(self, rows: UncommittedRows) -> None:
        """Keep rows to which tokens are being added, even if other drafts began later."""
        self._recent.note_use(rows)

    def invalidate_if_changed(self, *, thorough: bool = True) -> None:
        """Forget all that was computed with other weights.

        Args:
            thorough: See `WeightFingerprint.has_changed`.
        """
        if self._weights_changed(thorough=thorough):
            self.clear()

    def clear(self) -> None:
        """Forget everything; what callers have pinned is of no use to them any more."""
        self._recent.free()
        self.pool = self._new_pool(self.pool.max_bytes)
        self.num_resets += 1

    def _new_pool(self, max_bytes: int | None = None) -> SlotPool:
        return SlotPool(max_bytes, min_kept=MIN_PREFIX_LEN if self._has_handles else 1)

    # --- memory, see `KeepsCache` ---

    @property
    def bytes_per_token(self) -> int:
        """Memory of one cached token; 0 if it is not known, or nothing is cached."""
        return self.pool.bytes_per_token

    def limit_cache(self, max_bytes: int | None) -> None:
        """Bound the memory of cached prefixes, pinned or not; None for a default."""
        self.pool.max_bytes = max_bytes

    def memory_usage(self) -> dict[str, int]:
        """See `ReportsMemory`."""
        return {
            "kv_cache": self.pool.num_bytes,
            "candidates": self._recent.num_tokens * self.pool.bytes_per_token,
        }

    def free_unused(self) -> None:
        """Free all that is not pinned."""
        self._recent.free()
        self.pool.free_unused()

    # --- the steps of a request ---

    def _own(self, requests: Sequence[PrefixRequest]) -> list[PinnedPrefix | None]:
        """Return the callers' prefixes that are in this cache and of use, each only once."""
        found: list[PinnedPrefix | None] = []
        for ids, _, pinned in requests:
            valid = (
                pinned is not None
                and pinned.pool is self.pool
                and pinned.prefix.token_ids[:1] == ids[:1]
                and pinned not in found
            )
            found.append(pinned if valid else None)
        return found

    def _find(self, request: PrefixRequest, own: PinnedPrefix | None) -> Match | None:
        ids, points, _ = request
        if own is None:
            return self.match(ids, points)
        match = self._match(own.prefix, ids, points)
        if own.prefix.begins(ids):
            return match
        return max(match, self.match(ids, points) or match, key=_num_tokens)

    def _match(self, prefix: CachedPrefix, ids: list[int], points: Sequence[int]) -> Match:
        return prefix.match(ids, points, accepted=self._has_handles)

    def _may_cut(self, match: Match) -> bool:
        """Whether what a prefix has beyond a match is of no use to others."""
        lost = len(match.prefix.token_ids) - match.num_tokens
        return self._has_handles or lost <= _MAX_RETRACTED

    def _bring(self, prefix: CachedPrefix, match: Match) -> None:
        """Bring a prefix to the tokens of a match: its own prefix, or an empty one."""
        if prefix is not match.prefix:
            self.pool.copy(match.prefix, prefix, match.num_cached)
        elif match.num_tokens == len(prefix.token_ids):
            return  # rows beyond it may still be adopted
        self.pool.trim(prefix, match.num_cached)
        if match.row is not None:
            count = match.num_tokens - match.num_cached
            self.pool.write(prefix, *match.row.first(count), match.row.token_ids[:count])
        found = outputs_before(match.outputs, match.num_tokens)
        # Outputs of a language model are rows of large tensors.
        prefix.outputs = {p: o.clone() for p, o in found.items()} if self._has_handles else found


def _begin_alike(first: list[int], ids: list[int]) -> bool:
    return bool(first) and ids[: len(first)] == first


_num_tokens = attrgetter("num_tokens")
