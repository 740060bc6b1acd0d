"""Group rows: equal ones, and runs of neighbors."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def first_equal(keys: Iterable[Hashable]) -> list[int]:
    """Return, for each key, the index of the first one that equals it."""
    first: dict[Hashable, int] = {}
    return [first.setdefault(key, index) for index, key in enumerate(keys)]


def split_where(
    items: Iterable[Item], begins: Callable[[list[Item], Item], bool]
) -> Iterator[list[Item]]:
    """Divide items into groups of neighbors.

    Args:
        items: The items, in order.
        begins: Whether an item begins a new group, given the group before it.
    """
    group: list[Item] = []
    for item in items:
        if group and begins(group, item):
            yield group
            group = []
        group.append(item)
    if group:
        yield group
