"""Split texts into parts so that no two parts share a run of words."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence

from training.duplicates import words_of


def runs(text: str, length: int) -> set[tuple[str, ...]]:
    """Return every run of `length` words; of a shorter text, all of its words as one run."""
    found = words_of(text)
    return {tuple(found[i : i + length]) for i in range(max(1, len(found) - length + 1))}


def groups(texts: Sequence[str], *, run_words: int) -> list[list[int]]:
    """Group texts that share a run of `run_words` words, directly or through others.

    Returns:
        Lists of indices, each index in exactly one, in the order of their first texts.
    """
    parent = list(range(len(texts)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    owner: dict[tuple[str, ...], int] = {}
    for index, text in enumerate(texts):
        for run in runs(text, run_words):
            parent[root(index)] = root(owner.setdefault(run, index))
    members = defaultdict(list)
    for index in range(len(texts)):
        members[root(index)].append(index)
    return list(members.values())


def deal(
    grouped: Sequence[Sequence[int]], shares: Mapping[str, float], *, seed: int
) -> dict[str, list[int]]:
    """Assign whole groups, in random order, to parts of about the given shares.

    Args:
        grouped: Lists of indices, as returned by `groups`.
        shares: Each part's share of all indices; they add up to 1.
        seed: Seed of the order.

    Raises:
        ValueError: The shares do not add up to 1.
    """
    if abs(sum(shares.values()) - 1) > 1e-9:
        raise ValueError(f"shares={dict(shares)} add up to {sum(shares.values()):g}, not to 1")
    total = sum(map(len, grouped))
    order = list(grouped)
    random.Random(seed).shuffle(order)
    # Large groups go first: at the end, one would overfill the last open part.
    order.sort(key=len, reverse=True)
    parts: dict[str, list[int]] = {name: [] for name in shares}
    for group in order:
        neediest = max(shares, key=lambda name: shares[name] * total - len(parts[name]))
        parts[neediest] += group
    return parts
