"""Negate schemas, where this is possible keyword by keyword."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import pairwise
from typing import Any

from stars_engine.json_schema import values
from stars_engine.json_schema.nodes import (
    ANY,
    NEVER,
    Alternative,
    Array,
    Bool,
    Node,
    Null,
    Number,
    Object,
    String,
)
from stars_engine.json_schema.patterns import Pattern
from stars_engine.json_schema.supported import NodeReader, Place
from stars_engine.json_schema.values import MalformedError, count, list_of, mapping_of

_KINDS: dict[str, type] = {
    "null": Null,
    "boolean": Bool,
    "number": Number,
    "string": String,
    "array": Array,
    "object": Object,
}

CONDITIONAL = ("not", "if", "dependentRequired", "dependentSchemas", "dependencies")
# Keywords with a count, and the values beyond their bound.
_BEYOND: dict[str, tuple[Callable[..., Alternative], str, int]] = {
    "minLength": (String, "max_length", -1),
    "maxLength": (String, "min_length", 1),
    "minItems": (Array, "max_items", -1),
    "maxItems": (Array, "min_items", 1),
    "minProperties": (partial(Object, {}), "max_properties", -1),
    "maxProperties": (partial(Object, {}), "min_properties", 1),
}
_UNKNOWN = {
    "items", "prefixItems", "additionalItems", "additionalProperties", "patternProperties",
    "propertyNames", "contains", "uniqueItems", "multipleOf", "if", "oneOf", "dependentRequired",
    "dependentSchemas", "dependencies", "unevaluatedItems", "unevaluatedProperties",
    "$dynamicRef", "$recursiveRef",
}  # fmt: skip
# Keywords that allow every value if their schema does.
_OPEN = {
    *("items", "additionalItems", "unevaluatedItems", "propertyNames"),
    *("additionalProperties", "unevaluatedProperties"),
}


class Negation:
    """Reads the values that schemas exclude.

    Args:
        reader: Reads the values that they allow.
        is_partial: Whether to leave out excluded objects whose properties cannot be expressed.
    """

    def __init__(self, reader: NodeReader, *, is_partial: bool = False) -> None:
        self._reader, self._is_partial = reader, is_partial

    def conditional(self, keyword: str, schema: dict[str, Any], place: Place) -> Node:
        """Return the values that `not`, `if` or a dependency keyword allows.

        Raises:
            MalformedError: The schema cannot be negated, or is malformed.
        """
        value = schema[keyword]
        if keyword == "not":
            return self.of(value, place.at("not"))
        if keyword == "if":
            return self._if(schema, place)
        node = ANY
        for name, wanted in mapping_of(value).items():
            if isinstance(wanted, list):
                inner: Node = (Object({}, tuple(wanted)),)
            else:
                inner = self._reader.node(wanted, place.at(keyword, name, is_part=True))
            with_name = self._reader.intersections.intersect((Object({}, (name,)),), inner)
            either: Node = (*ANY[:-1], Object({name: NEVER}), *with_name)
            node = self._reader.intersections.intersect(node, either)
        return node

    def _if(self, schema: dict[str, Any], place: Place) -> Node:
        if "then" not in schema and "else" not in schema:
            return ANY
        node = self._reader.node
        condition = node(schema["if"], place.at("if", is_part=True))
        then = node(schema.get("then", True), place.at("then", is_part=True))
        negated = self.of(schema["if"], place.at("if"))
        otherwise = node(schema.get("else", True), place.at("else", is_part=True))
        intersect = self._reader.intersections.intersect
        return (*intersect(condition, then), *intersect(negated, otherwise))

    def of(self, schema: Any, place: Place, depth: int = 0) -> Node:
        """Return the values that a schema excludes, or a subset of them.

        Raises:
            MalformedError: The schema cannot be negated, or is malformed.
        """
        if isinstance(schema, bool) or schema == {}:
            return ANY if schema is False else NEVER
        if not isinstance(schema, dict) or depth > 16:
            raise MalformedError(f"{schema!r} cannot be negated")
        found: list[Alternative] = []
        for keyword, value in schema.items():
            if keyword in _OPEN and (value is True or value == {}):
                continue
            if keyword in _UNKNOWN:
                raise MalformedError(f"`{keyword}` cannot be negated")
            node = self._of_keyword(keyword, value, schema, place, depth)
            if node is ANY:
                return ANY
            found += node
        return tuple(found)

    def _of_keyword(
        self, keyword: str, value: Any, schema: dict[str, Any], place: Place, depth: int
    ) -> Node:
        match keyword:
            case "properties":
                found = []
                for name, inner in mapping_of(value).items():
                    with suppress(*[MalformedError] * self._is_partial):
                        node = self.of(inner, place.at("properties", name), depth + 1)
                        if node:
                            found.append(Object({name: node}, (name,)))
                return tuple(found)
            case "allOf":
                return tuple(
                    part
                    for index, inner in enumerate(list_of(value))
                    for part in self.of(inner, place.at("allOf", index), depth + 1)
                )
            case "anyOf":
                node = ANY
                for index, inner in enumerate(list_of(value)):
                    negated = self.of(inner, place.at("anyOf", index), depth + 1)
                    node = self._reader.intersections.intersect(node, negated)
                return node
            case "not":
                return self._reader.node(value, place.at("not", is_part=True))
            case "$ref":
                target = self._reader.references.find(schema, value)
                return self.of(target, place, depth + 1)
        return _of_plain_keyword(keyword, value, schema)


def _of_plain_keyword(keyword: str, value: Any, schema: dict[str, Any]) -> Node:
    """Return the values that a keyword without inner schemas excludes."""
    node: Node
    match keyword:
        case _ if keyword in _BEYOND:
            kind, name, step = _BEYOND[keyword]
            bound = count(value) + step
            node = () if bound < 0 else (kind(**{name: bound}),)
        case "type":
            return _other_types(value)
        case "const" | "enum":
            return _other_values([value] if keyword == "const" else list_of(value))
        case "required":
            node = tuple(Object({name: NEVER}) for name in list_of(value))
        case "pattern":
            node = (String(avoided=(Pattern(value),)),)
        case "minimum" | "exclusiveMinimum" | "maximum" | "exclusiveMaximum":
            node = _beyond(values.number(keyword, value, schema))
        case _:
            node = NEVER
    return node


def _beyond(number: Number) -> Node:
    if number.low is not None:
        return (Number(high=number.low, below_high=not number.above_low),)
    if number.high is not None:
        return (Number(low=number.high, above_low=not number.below_high),)
    return NEVER


def _other_types(value: Any) -> Node:
    names = [value] if isinstance(value, str) else value
    if "integer" in names and "number" not in names:
        raise MalformedError("the type integer cannot be negated")
    kinds = tuple(_KINDS[name] for name in names if name in _KINDS)
    return tuple(part for part in ANY if not isinstance(part, kinds))


def _other_values(listed: list[Any]) -> Node:
    """Return all values except some."""
    if any(isinstance(value, (list, dict)) for value in listed):
        raise MalformedError("a list of arrays or objects cannot be negated")
    truths = frozenset((False, True)) - {v for v in listed if isinstance(v, bool)}
    texts = tuple(Pattern(f"^{re.escape(value)}$") for value in listed if isinstance(value, str))
    found: list[Alternative] = [String(avoided=texts), *ANY[-2:]]
    if None not in listed:
        found.append(Null())
    if truths:
        found.append(Bool(truths))
    numbers = sorted(
        {
            values.number_of(value)
            for value in listed
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
    )
    for low, high in pairwise([None, *numbers, None]):
        bounds = Number(low=low, high=high, above_low=low is not None, below_high=high is not None)
        found.append(bounds)
    return tuple(found)
