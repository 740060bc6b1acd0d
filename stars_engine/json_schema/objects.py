"""The order of properties in a grammar: named properties first, then all others."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

from stars_engine.json_schema.intersections import (
    Intersections,
    TooComplexError,
    rest_of,
    string_holds,
)
from stars_engine.json_schema.nodes import ANY, NEVER, Node, Object, Reference, String
from stars_engine.json_schema.patterns import NOTHING, between_quotes, either, written

_MAX_PATTERNS = 5  # names may match any combination of them


@dataclass(frozen=True)
class Field:
    """A named property.

    Attributes:
        name: The name.
        node: The node of its value.
        is_required: Whether it is required.
    """

    name: str
    node: Node
    is_required: bool


@dataclass(frozen=True)
class Others:
    """Properties with other names.

    Attributes:
        key: The terminal expression for such names, including quotes.
        node: The node of their values.
    """

    key: str
    node: Node


def laid_out(
    obj: Object, intersections: Intersections, dereference: Callable[[Reference], Node]
) -> tuple[list[Field], list[Others]]:
    """Return the properties of an object node: the named ones, and the others.

    Raises:
        TooComplexError: There are too many patterns for names.
    """
    names = None if obj.names is None else _strings(obj.names, dereference)
    order = dict.fromkeys([*obj.properties, *obj.required])
    for string in names or ():
        order.update(dict.fromkeys(string.values or ()))
    fields = []
    for name in order:
        is_allowed = names is None or any(
            string_holds(string, name) and (string.values is None or name in string.values)
            for string in names
        )
        node = intersections.property_of(obj, name) if is_allowed else NEVER
        fields.append(Field(name, node, name in obj.required))
    bases = [between_quotes(())]
    if names is not None:
        bases = [
            between_quotes(s.patterns, s.avoided, (s.min_length, s.max_length))
            for s in names
            if s.values is None
        ]
    base = either(bases)
    if base == NOTHING:
        return fields, []
    taken = either(json.dumps(written(name), ensure_ascii=False) for name in order)
    return fields, list(_others(obj, intersections, base, taken))


def _others(obj: Object, intersections: Intersections, base: str, taken: str) -> list[Others]:
    patterns = obj.patterns
    if len(patterns) > _MAX_PATTERNS:
        raise TooComplexError(f"more than {_MAX_PATTERNS} patternProperties")
    found = []
    for size in range(len(patterns) + 1):
        for chosen in combinations(patterns, size):
            node = ANY if chosen else rest_of(obj)
            for _, inner in chosen:
                node = intersections.intersect(node, inner)
            if node == NEVER:
                continue
            matched = [pattern for pattern, _ in chosen]
            others = [pattern for pattern, _ in patterns if pattern not in matched]
            key = f"({base})"
            if matched or others:
                key += f" & ({between_quotes(matched, others)})"
            key = f'"\\"" ({key}) "\\""'
            if taken != NOTHING:
                key = f"({key}) & ~({taken})"
            found.append(Others(key, node))
    return found


def _strings(node: Node, dereference: Callable[[Reference], Node]) -> list[String]:
    found = []
    for part in node:
        alternatives = dereference(part) if isinstance(part, Reference) else (part,)
        found += [inner for inner in alternatives if isinstance(inner, String)]
    return found
