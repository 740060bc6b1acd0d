"""What JSON values a schema allows, as sets that can be intersected and written as a grammar.

A node is a tuple of alternatives: a value belongs to the node if it belongs to one of them. The
empty tuple holds no value. Each alternative holds values of one JSON type, except `Reference`.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from stars_engine.json_schema.patterns import Pattern


@dataclass(frozen=True, eq=False)
class Null:
    """The value null."""


@dataclass(frozen=True, eq=False)
class Bool:
    """Truth values.

    Attributes:
        values: Those that are allowed.
    """

    values: frozenset[bool] = frozenset((False, True))


@dataclass(frozen=True, eq=False)
class Number:
    """Numbers.

    Attributes:
        integer: Whether only integers are allowed.
        low: Lower bound, None for none.
        high: Upper bound, None for none.
        above_low: Whether the lower bound itself is excluded.
        below_high: Whether the upper bound itself is excluded.
        multiple_of: Divisor, None for none.
        values: The only values, None for no such list.
    """

    integer: bool = False
    low: Fraction | None = None
    high: Fraction | None = None
    above_low: bool = False
    below_high: bool = False
    multiple_of: Fraction | None = None
    values: tuple[int | float, ...] | None = None


@dataclass(frozen=True, eq=False)
class String:
    """Strings.

    Attributes:
        min_length: Least number of characters.
        max_length: Greatest number of characters, None for no bound.
        patterns: Regular expressions that all match somewhere.
        avoided: Regular expressions that match nowhere.
        values: The only values, None for no such list.
    """

    min_length: int = 0
    max_length: int | None = None
    patterns: tuple[Pattern, ...] = ()
    avoided: tuple[Pattern, ...] = ()
    values: tuple[str, ...] | None = None


@dataclass(frozen=True, eq=False)
class Array:
    """Arrays.

    Attributes:
        prefix: What the first items are.
        items: What all further items are, None where the schema says nothing.
        min_items: Least number of items.
        max_items: Greatest number of items, None for no bound.
    """

    prefix: tuple[Node, ...] = ()
    items: Node | None = None
    min_items: int = 0
    max_items: int | None = None


@dataclass(frozen=True, eq=False)
class Object:
    """Objects.

    Attributes:
        properties: What the values of named properties are, in the order in which they are written.
        required: Names of properties that must be there.
        patterns: What the values of properties are whose names a regular expression matches.
        additional: What the values of all other properties are, None where the schema says nothing.
        names: What names all properties may have, None for any.
        min_properties: Least number of properties.
        max_properties: Greatest number of properties, None for no bound.
        is_open: Whether other properties are allowed where the schema says nothing.
    """

    properties: dict[str, Node]
    required: tuple[str, ...] = ()
    patterns: tuple[tuple[Pattern, Node], ...] = ()
    additional: Node | None = None
    names: Node | None = None
    min_properties: int = 0
    max_properties: int | None = None
    is_open: bool = True


@dataclass(frozen=True, eq=False)
class Reference:
    """Values that belong to all of several named nodes."""

    names: tuple[str, ...]


Alternative = Null | Bool | Number | String | Array | Object | Reference
Node = tuple[Alternative, ...]

NEVER: Node = ()
ANY: Node = (Null(), Bool(), Number(), String(), Array(), Object({}))


def node_of_value(value: Any) -> Node:
    """Return the node of one value."""
    if value is None:
        return (Null(),)
    if isinstance(value, bool):
        return (Bool(frozenset((value,))),)
    if isinstance(value, (int, float)):
        return (Number(values=(value,)),)
    if isinstance(value, str):
        return (String(values=(value,)),)
    if isinstance(value, list):
        items = tuple(node_of_value(item) for item in value)
        return (Array(items, NEVER, len(items), len(items)),)
    named = {name: node_of_value(inner) for name, inner in value.items()}
    return (Object(named, tuple(named), additional=NEVER, is_open=False),)


def node_of_values(values: list[Any]) -> Node:
    """Return the node of several values; those of one type side by side."""
    found: list[Alternative] = []
    strings = tuple(dict.fromkeys(value for value in values if isinstance(value, str)))
    numbers = tuple(
        value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)
    )
    truths = frozenset(value for value in values if isinstance(value, bool))
    if strings:
        found.append(String(values=strings))
    if numbers:
        found.append(Number(values=numbers))
    if truths:
        found.append(Bool(truths))
    for value in values:
        if value is None or isinstance(value, (list, dict)):
            found += node_of_value(value)
    return tuple(found)
