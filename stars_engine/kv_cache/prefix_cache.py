"""The prefix cache of a model: token prefixes and their KV, found, extended, evicted.

A caller asks for a prefix. Its longest cached beginning is found; tokens of an uncommitted row that
continue it are adopted without being computed again; the missing tokens are computed. Prefill,
accepting a candidate and coming back after preemption are this one path.

A prefix is pinned as long as its holder keeps the `PinnedPrefix`. Prefixes that are not pinned stay
until their store needs the memory. Candidates are rows computed beyond a prefix: rejecting one
takes no action.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Generic, NamedTuple, Protocol

import torch

from stars_engine.kv_cache.cached_prefix import (
    MIN_PREFIX_LEN,
    Match,
    Outputs,
    P,
    UncommittedRow,
    UncommittedRows,
    outputs_before,
)
from stars_engine.kv_cache.scratch import ByLayer

_MAX_RECENT = 8  # passes whose rows may still be adopted
_MAX_RECENT_BYTES = 1 << 30  # of passes before the latest
_MAX_RETRACTED = 32  # tokens that another tokenizer may merge differently when text goes on

# Computes equally many tokens of each prefix and stores their KV. Takes the prefixes, their new
# tokens, and columns of those whose outputs are needed; returns `(prefixes, columns, ...)`.
Extend = Callable[[Sequence[P], Sequence[list[int]], Sequence[Sequence[int]]], torch.Tensor]


class PrefixStore(Protocol[P]):
    """Where KV of prefixes is kept.

    Attributes:
        max_bytes: What all prefixes may take; None for a default.
        exact_only: Whether a prefix can only be continued from its end.
    """

    max_bytes: int | None
    exact_only: bool

    @property
    def bytes_per_token(self) -> int:
        """Memory of one token; 0 if it is not known."""
        ...

    def prefixes(self) -> Iterator[P]:
        """Yield all prefixes, pinned or not."""
        ...

    def allocate(self, lengths: Sequence[int]) -> list[P]:
        """Return empty pinned prefixes with room for so many tokens."""
        ...

    def pin(self, prefix: P) -> bool:
        """Keep a prefix from eviction; return False if it is pinned already."""
        ...

    def unpin(self, prefix: P) -> None:
        """Allow eviction. May be called from any thread."""
        ...

    def copy(self, source: P, target: P, length: int) -> None:
        """Copy the first tokens of a prefix into an empty one."""
        ...

    def trim(self, prefix: P, length: int) -> None:
        """Keep only the first tokens of a prefix."""
        ...

    def write(self, prefix: P, keys: ByLayer, values: ByLayer, ids: Sequence[int]) -> None:
        """Append the KV of tokens, by layer `(kv_heads, tokens, head_dim)`."""
        ...

    def free_unused(self) -> None:
        """Free what is not pinned."""
        ...


class PinnedPrefix(Generic[P]):
    """Keeps a prefix from eviction until its holder drops this object.

    Attributes:
        prefix: The prefix.
        store: Where it is.
    """

    __slots__ = ("__weakref__", "prefix", "store")

    def __init__(self, store: PrefixStore[P], prefix: P) -> None:
        self.prefix, self.store = prefix, store
        weakref.finalize(self, store.unpin, prefix).atexit = False


class PrefixRequest(NamedTuple, Generic[P]):
    """A prefix to have in the cache.

    Attributes:
        token_ids: Its tokens.
        points: Positions whose outputs are needed.
        pinned: What the caller holds of it: a hint that makes the search short.
    """

    token_ids: list[int]
    points: Sequence[int]
    pinned: PinnedPrefix[P] | None = None


class Claim(NamedTuple, Generic[P]):
    """A prefix to pin, with exactly the tokens that are known of a row.

    Attributes:
        match: What is known; None if nothing is.
        length: Tokens it will have.
        pinned: The caller's own prefix, which may be changed in place.
    """

    match: Match[P] | None
    length: int
    pinned: PinnedPrefix[P] | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens that are known."""
        return 0 if self.match is None else self.match.num_tokens


class PrefixCache(Generic[P]):
    """Prefixes of one model.

    Args:
        make_store: Returns an empty store.
        extend: Computes tokens.
        weights_changed: Returns whether the model's weights have changed since it was last called.
        has_handles: Whether callers keep pins on what they still need and ask for accepted tokens
            only, as requests to a language model do. If not, nothing says which candidate was
            accepted or which prefix is still in use: rows that continue one show it, and a prefix
            is copied rather than cut.
        keep_outputs: Whether outputs at all positions are kept; if not, only the last.
        max_tokens: Tokens computed in one pass; None for no limit.
    """

    def __init__(
        self,
        make_store: Callable[[], PrefixStore[P]],
        extend: Extend[P],
        weights_changed: Callable[..., bool],
        *,
        has_handles: bool = True,
        keep_outputs: bool = False,
        max_tokens: int | None = None,
    ) -> None:
        self._make_store, self._extend, self._weights_changed = make_store, extend, weights_changed
        self._has_handles, self._keep_outputs = has_handles, keep_outputs
        self._max_tokens = max_tokens
        self._recent: list[weakref.ref[UncommittedRows]] = []  # the latest last
        self.store = make_store()

    def fetch(self, requests: Sequence[PrefixRequest[P]]) -> list[PinnedPrefix[P]]:
        """Return prefixes with all their tokens and outputs, each for one holder.

        Raises:
            RuntimeError: Out of memory. What is pinned stays valid, and nothing is lost but time.
        """
        own = self._own(requests)
        if None in own:
            self.invalidate_if_changed()
            own = self._own(requests)
        # Equal prefixes are computed once, then copied.
        first: dict[object, int] = {}
        leaders = [
            index if pinned else first.setdefault((tuple(ids), tuple(points)), index)
            for index, ((ids, points, _), pinned) in enumerate(zip(requests, own, strict=True))
        ]
        indices = [index for index, leader in enumerate(leaders) if index == leader]
        claims = [
            Claim(self._find(requests[i], own[i]), len(requests[i].token_ids), own[i])
            for i in indices
        ]
        found = dict(zip(indices, self.claim(claims), strict=True))
        self._compute([(found[i].prefix, requests[i]) for i in indices])
        copies = [index for index, leader in enumerate(leaders) if index != leader]
        known = [found[leaders[index]].prefix for index in copies]
        sizes = [len(prefix.token_ids) for prefix in known]
        whole = [
            Claim(Match(size, prefix, None, prefix.outputs), size)
            for size, prefix in zip(sizes, known, strict=True)
        ]
        found |= zip(copies, self.claim(whole), strict=True)
        return [found[index] for index in range(len(requests))]

    def match(
        self, ids: list[int], points: Sequence[int], near: Iterable[P] = ()
    ) -> Match[P] | None:
        """Return the prefix that most is known of a row from; None if too little is.

        Args:
            ids: The row.
            points: Positions whose outputs are needed.
            near: Prefixes to try first.
        """
        size = len(ids)
        least = MIN_PREFIX_LEN if self._has_handles else max(1, min(MIN_PREFIX_LEN, size // 4))
        for prefixes in (near, self.store.prefixes()):
            alike = [each for each in prefixes if _begin_alike(each.token_ids[:least], ids)]
            found = [self._match(each, ids, points) for each in alike if each.begins(ids)]
            best = max(found, key=_num_tokens, default=None)
            if best is None or 2 * best.num_tokens < size:
                found += [self._match(each, ids, points) for each in alike]
                best = max(found, key=_num_tokens, default=None)
            if best is not None and best.num_tokens >= least:
                return best
        return None

    def claim(self, claims: Sequence[Claim[P]]) -> list[PinnedPrefix[P]]:
        """Pin a prefix for each claim, cut to what is known; the caller may change it.

        A prefix that nobody has pinned is changed in place, others are copied. Uncommitted tokens
        are adopted.
        """
        store = self.store
        # All sources are pinned first: room for one must not be made of another.
        taken = {
            prefix: PinnedPrefix(store, prefix)
            for prefix in dict.fromkeys(claim.match.prefix for claim in claims if claim.match)
            if store.pin(prefix)
        }
        # Before any of them is changed.
        sizes = [
            min(claim.num_tokens, len(claim.match.prefix.token_ids)) if claim.match else 0
            for claim in claims
        ]
        found: dict[int, PinnedPrefix[P]] = {}
        # Who knows most has the prefix itself, so the others find in it what they copy.
        order = sorted(range(len(claims)), key=lambda index: -claims[index].num_tokens)
        for index in order:
            match, _, own = claims[index]
            if match is None:
                continue
            if own is not None and own.prefix is match.prefix:
                found[index] = own
            elif match.prefix in taken and self._may_cut(match):
                found[index] = taken.pop(match.prefix)
        others = [index for index in range(len(claims)) if index not in found]
        fresh = store.allocate([claims[index].length for index in others])
        found |= {i: PinnedPrefix(store, prefix) for i, prefix in zip(others, fresh, strict=True)}
        for index in order:
            match = claims[index].match
            if match is not None:
                self._bring(found[index].prefix, match, sizes[index])
        return [found[index] for index in range(len(claims))]

    def add_uncommitted(
        self, prefixes: Sequence[P], rows: UncommittedRows, outputs: Sequence[Outputs] | None = None
    ) -> None:
        """Remember rows computed beyond prefixes, one for each, in case one is accepted."""
        for index, prefix in enumerate(prefixes):
            alive = [row for row in prefix.uncommitted if row.rows.has_kv]
            row = UncommittedRow(rows, index, {} if outputs is None else outputs[index])
            prefix.uncommitted = [*alive, row]
        recent = [each for ref in self._recent if (each := ref()) is not None]
        sizes = [each.num_tokens * self.store.bytes_per_token for each in recent]
        while recent and (len(recent) >= _MAX_RECENT or sum(sizes) > _MAX_RECENT_BYTES):
            recent.pop(0).free()
            sizes.pop(0)
        self._recent = [weakref.ref(each) for each in [*recent, rows]]

    def invalidate_if_changed(self, *, thorough: bool = True) -> None:
        """Forget all that was computed with other weights.

        Args:
            thorough: See `WeightFingerprint.has_changed`.
        """
        if self._weights_changed(thorough=thorough):
            self._free_recent()
            max_bytes, self.store = self.store.max_bytes, self._make_store()
            self.store.max_bytes = max_bytes

    # --- memory ---

    @property
    def bytes_per_token(self) -> int:
        """Memory of one cached token; 0 if it is not known, or nothing is cached."""
        return self.store.bytes_per_token

    def limit(self, max_bytes: int | None) -> None:
        """Bound the memory of cached prefixes, pinned or not; None for a default."""
        self.store.max_bytes = max_bytes

    def free_unused(self) -> None:
        """Free all that is not pinned."""
        self._free_recent()
        self.store.free_unused()

    def _free_recent(self) -> None:
        for ref in self._recent:
            rows = ref()
            if rows is not None:
                rows.free()
        self._recent.clear()

    # --- the steps of a request ---

    def _own(self, requests: Sequence[PrefixRequest[P]]) -> list[PinnedPrefix[P] | None]:
        """Return the callers' prefixes that are in this cache and of use, each only once."""
        found: list[PinnedPrefix[P] | None] = []
        for ids, _, pinned in requests:
            valid = (
                pinned is not None
                and pinned.store is self.store
                and pinned.prefix.token_ids[:1] == ids[:1]
                and pinned not in found
            )
            found.append(pinned if valid else None)
        return found

    def _find(self, request: PrefixRequest[P], own: PinnedPrefix[P] | None) -> Match[P] | None:
        ids, points, _ = request
        if own is None:
            return self.match(ids, points)
        match = self._match(own.prefix, ids, points)
        if own.prefix.begins(ids):
            return match
        return max(match, self.match(ids, points) or match, key=_num_tokens)

    def _match(self, prefix: P, ids: list[int], points: Sequence[int]) -> Match[P]:
        match = prefix.match(ids, points, accepted=self._has_handles)
        if self.store.exact_only and match.num_tokens < len(prefix.token_ids):
            return Match(0, prefix, None, {})
        return match

    def _may_cut(self, match: Match[P]) -> bool:
        """Whether what a prefix has beyond a match is of no use to others."""
        lost = len(match.prefix.token_ids) - match.num_tokens
        return self._has_handles or lost <= _MAX_RETRACTED

    def _bring(self, prefix: P, match: Match[P], size: int) -> None:
        """Bring a prefix to the tokens of a match; `size` of them are in the matched prefix."""
        count, source, row, outputs = match
        if prefix is not source:
            self.store.copy(source, prefix, size)
        elif count == len(prefix.token_ids):
            return  # rows beyond it may still be adopted
        self.store.trim(prefix, size)
        if row is not None:
            ids = row.token_ids[: count - size]
            self.store.write(prefix, *row.rows.first(row.index, len(ids)), ids)
        prefix.outputs = outputs_before(outputs, count)

    def _compute(self, wanted: Sequence[tuple[P, PrefixRequest[P]]]) -> None:
        """Compute the missing tokens: equally many together, none beside an empty prefix."""
        groups: dict[tuple[bool, int], list[tuple[P, PrefixRequest[P]]]] = defaultdict(list)
        for prefix, request in wanted:
            size = len(prefix.token_ids)
            if size < len(request.token_ids):
                groups[size > 0, len(request.token_ids) - size].append((prefix, request))
        for (_, count), group in groups.items():
            most = self._max_tokens or len(group) * count
            num_rows = max(1, most // count)
            for first in range(0, len(group), num_rows):
                self._compute_together(group[first : first + num_rows], count, most)

    def _compute_together(
        self, group: Sequence[tuple[P, PrefixRequest[P]]], count: int, most: int
    ) -> None:
        """Compute equally many tokens of each prefix, in chunks that bound the memory of a pass."""
        size = max(1, most // len(group))
        prefixes = [prefix for prefix, _ in group]
        for done in range(0, count, size):
            starts = [len(prefix.token_ids) for prefix in prefixes]
            ids, points = [], []
            for (_, request), start in zip(group, starts, strict=True):
                end = start + min(size, count - done)
                ids.append(request.token_ids[start:end])
                points.append(sorted({p for p in request.points if start <= p < end} | {end - 1}))
            columns = [
                [p - start for p in each] for each, start in zip(points, starts, strict=True)
            ]
            outputs = self._extend(prefixes, ids, columns)
            for prefix, each, output in zip(prefixes, points, outputs, strict=True):
                before = prefix.outputs if self._keep_outputs else {}
                prefix.outputs = {**before, **dict(zip(each, output, strict=False))}


def _begin_alike(first: list[int], ids: list[int]) -> bool:
    return bool(first) and ids[: len(first)] == first


_num_tokens = attrgetter("num_tokens")
