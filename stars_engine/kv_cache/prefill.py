"""Compute the tokens that cached prefixes lack, in passes of bounded memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, NamedTuple

from stars_engine.kv_cache.cache_entry import CachedPrefix

# Computes equally many tokens of each prefix and stores their KV. Takes the prefixes, their new
# tokens, and columns of those whose outputs are needed; returns these, by prefix and column.
Extend = Callable[
    [Sequence[CachedPrefix], Sequence[list[int]], Sequence[Sequence[int]]], Iterable[Iterable[Any]]
]


class PrefixTarget(NamedTuple):
    """What a prefix is to have.

    Attributes:
        prefix: The prefix.
        token_ids: All its tokens.
        points: Positions whose outputs are needed.
    """

    prefix: CachedPrefix
    token_ids: list[int]
    points: Sequence[int]


def compute_missing(
    targets: Sequence[PrefixTarget], extend: Extend, *, max_tokens: int, keeps_outputs: bool
) -> Generator[int, None, None]:
    """Compute the missing tokens: equally many together, none with an empty prefix.

    Args:
        targets: The prefixes.
        extend: Computes tokens.
        max_tokens: Tokens computed in one pass.
        keeps_outputs: Whether outputs at earlier positions are still needed.

    Yields:
        How many passes are left, between two passes.
    """
    groups: dict[tuple[bool, int], list[PrefixTarget]] = defaultdict(list)
    for target in targets:
        size = len(target.prefix.token_ids)
        if size < len(target.token_ids):
            groups[size > 0, len(target.token_ids) - size].append(target)
    passes: list[tuple[list[PrefixTarget], int]] = []  # with the tokens of each
    for (_, count), group in groups.items():
        num_rows = max(1, max_tokens // count)
        for first in range(0, len(group), num_rows):
            together = group[first : first + num_rows]
            size = max(1, max_tokens // len(together))
            passes += [(together, min(size, count - done)) for done in range(0, count, size)]
    for index, (together, count) in enumerate(passes):
        if index:
            yield len(passes) - index
        _compute_together(together, count, extend, keeps_outputs=keeps_outputs)


def _compute_together(
    group: Sequence[PrefixTarget], count: int, extend: Extend, *, keeps_outputs: bool
) -> None:
    prefixes = [target.prefix for target in group]
    starts = [len(prefix.token_ids) for prefix in prefixes]
    ids, points = [], []
    for target, start in zip(group, starts, strict=True):
        end = start + count
        ids.append(target.token_ids[start:end])
        points.append(sorted({p for p in target.points if start <= p < end} | {end - 1}))
    columns = [[p - start for p in each] for each, start in zip(points, starts, strict=True)]
    outputs = extend(prefixes, ids, columns)
    for prefix, each, output in zip(prefixes, points, outputs, strict=True):
        before = prefix.outputs if keeps_outputs else {}
        prefix.outputs = {**before, **dict(zip(each, output, strict=False))}
