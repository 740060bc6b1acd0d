"""Sets of JSON values, which can be intersected and written as a grammar.

A node is a tuple of alternatives. A value is in the node if it is in one of them; the empty tuple
has no values. Each alternative has values of one JSON type, except `Reference`.
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
    """Booleans.

    Attributes:
        values: The allowed values.
    """

    values: frozenset[bool] = frozenset((False, True))


@dataclass(frozen=True, eq=False)
class Number:
    """Numbers.

    Attributes:
        integer: Whether only integers are allowed.
        low: Lower bound, or None.
        high: Upper bound, or None.
        above_low: Whether the lower bound itself is excluded.
        below_high: Whether the upper bound itself is excluded.
        multiple_of: Divisor, or None.
        divisors: Floats by which validators divide, with rounding.
        values: The only allowed values, or None.
    """

    integer: bool = False
    low: Fraction | None = None
    high: Fraction | None = None
    above_low: bool = False
    below_high: bool = False
    multiple_of: Fraction | None = None
    divisors: tuple[float, ...] = ()
    values: tuple[int | float, ...] | None = None


@dataclass(frozen=True, eq=False)
class String:
    """Strings.

    Attributes:
        min_length: Minimum number of characters.
        max_length: Maximum number of characters, or None.
        patterns: Regular expressions that all match somewhere.
        avoided: Regular expressions that match nowhere.
        values: The only allowed values, or None.
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
        prefix: The nodes of the first items.
        items: The node of all further items; None if unconstrained.
        min_items: Minimum number of items.
        max_items: Maximum number of items, or None.
    """

    prefix: tuple[Node, ...] = ()
    items: Node | None = None
    min_items: int = 0
    max_items: int | None = None


@dataclass(frozen=True, eq=False)
class Object:
    """Objects.

    Attributes:
        properties: The nodes of named properties, in the order in which they are written.
        required: Names of required properties.
        patterns: The nodes of properties whose names match a regular expression.
        additional: The node of all other properties; None if unconstrained.
        names: The node of property names; None for any name.
        min_properties: Minimum number of properties.
        max_properties: Maximum number of properties, or None.
        is_open: Whether other properties are allowed if the schema does not say.
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
    """Values in the intersection of named nodes."""

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
    """Return the node of several values, grouped by type."""
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
