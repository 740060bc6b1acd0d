"""Read keywords that constrain values of one type."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from stars_engine.json_schema import values
from stars_engine.json_schema.intersections import array, intersect_numbers, intersect_strings
from stars_engine.json_schema.keywords import DECIMAL_PLACES
from stars_engine.json_schema.nodes import (
    ANY,
    Alternative,
    Bool,
    Node,
    Null,
    Number,
    Object,
    String,
)
from stars_engine.json_schema.patterns import Pattern
from stars_engine.json_schema.supported import NodeReader, Place
from stars_engine.json_schema.values import (
    MalformedError,
    least_of,
    list_of,
    mapping_of,
    most_of,
)

_NUMBERS = (
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    DECIMAL_PLACES,
)
_STRINGS = ("minLength", "maxLength", "pattern", "format", "contentEncoding")
_ARRAYS = ("prefixItems", "items", "additionalItems", "minItems", "maxItems", "unevaluatedItems")
_OBJECTS = (
    "properties",
    "patternProperties",
    "additionalProperties",
    "required",
    "propertyNames",
    "minProperties",
    "maxProperties",
    "unevaluatedProperties",
)
KEYWORDS = {"type", *_NUMBERS, *_STRINGS, *_ARRAYS, *_OBJECTS}
_TYPES = ("null", "boolean", "number", "string", "array", "object")
# Keywords that may evaluate properties and items of the same value.
IN_PLACE = (
    "allOf",
    "anyOf",
    "oneOf",
    "$ref",
    "$dynamicRef",
    "$recursiveRef",
    "if",
    "not",
    "dependentSchemas",
    "dependencies",
)


class TypedKeywords:
    """Reads the keywords of a schema that constrain values of one type.

    Args:
        reader: Reads the inner schemas.
    """

    def __init__(self, reader: NodeReader) -> None:
        self._reader = reader

    def read(self, schema: dict[str, Any], place: Place, *, is_open: bool) -> Node:
        """Return the values that these keywords allow.

        Args:
            schema: The schema.
            place: Its location.
            is_open: Whether objects may have properties that are not named.
        """
        named = schema.get("type", list(_TYPES))
        found: list[Alternative] = []
        for name in (
            [named] if isinstance(named, str) else named if isinstance(named, list) else [named]
        ):
            match name:
                case "null":
                    found.append(Null())
                case "boolean":
                    found.append(Bool())
                case "number" | "integer":
                    found += self._number(schema, place, integer=name == "integer")
                case "string":
                    found += self._string(schema, place)
                case "array":
                    found += self._array(schema, place)
                case "object":
                    found.append(self._object(schema, place, is_open=is_open))
                case _:
                    self._reader.add(place, "type", f"Invalid type: {name}")
                    return ANY
        return tuple(found)

    def _number(self, schema: dict[str, Any], place: Place, *, integer: bool) -> Node:
        node: Node = (Number(integer=integer),)
        for keyword in _NUMBERS:
            if keyword in schema and node:
                with self._reader.noting(place, keyword):
                    [number] = node
                    assert isinstance(number, Number)
                    wanted = values.number(keyword, schema[keyword], schema)
                    if wanted.divisors and place.is_wide:
                        continue  # validators that divide floats accept other numbers too
                    node = intersect_numbers(number, wanted)
        return node

    def _string(self, schema: dict[str, Any], place: Place) -> Node:
        node: Node = (String(),)
        for keyword in _STRINGS:
            if keyword in schema and node:
                with self._reader.noting(place, keyword):
                    [string] = node
                    assert isinstance(string, String)
                    wanted = values.string(keyword, schema[keyword], with_formats=not place.is_wide)
                    node = intersect_strings(string, wanted)
        return node

    def _array(self, schema: dict[str, Any], place: Place) -> Node:
        first, rest = schema.get("prefixItems", []), schema.get("items")
        keys = ("prefixItems", "items")
        if isinstance(rest, list):  # the form of earlier drafts
            first, rest, keys = rest, schema.get("additionalItems"), ("items", "additionalItems")
        if rest is None and not any(name in schema for name in IN_PLACE):
            rest = schema.get("unevaluatedItems")
        least, most, items = 0, None, None
        prefix: tuple[Node, ...] = ()
        with self._reader.noting(place, "minItems"):
            least = least_of(schema.get("minItems", 0))
        with self._reader.noting(place, "maxItems"):
            most = most_of(schema["maxItems"]) if "maxItems" in schema else None
        with self._reader.noting(place, keys[0]):
            inner = [
                self._reader.node(part, place.at(keys[0], i))
                for i, part in enumerate(list_of(first))
            ]
            prefix = tuple(inner)
        if rest is not None:
            items = self._reader.node(rest, place.at(keys[1]))
        return array(prefix, items, least, most)

    def _object(self, schema: dict[str, Any], place: Place, *, is_open: bool) -> Object:
        if not ("properties" in schema or "patternProperties" in schema) or place.is_wide:
            is_open = True
        reader = self._reader
        obj = Object({}, is_open=is_open)
        with reader.noting(place, "patternProperties"):
            patterns = [
                (Pattern(source), reader.node(inner, place.at("patternProperties", source)))
                for source, inner in mapping_of(schema.get("patternProperties", {})).items()
            ]
            obj = replace(obj, patterns=tuple(patterns))
        with reader.noting(place, "properties"):
            named = {
                name: reader.node(inner, place.at("properties", name))
                for name, inner in mapping_of(schema.get("properties", {})).items()
            }
            for name, node in named.items():
                for pattern, inner in obj.patterns:
                    if pattern.may_match(name):
                        named[name] = node = reader.intersections.intersect(node, inner)  # noqa: PLW2901
            obj = replace(obj, properties=named)
        rest = schema.get("additionalProperties")
        if rest is None and not any(name in schema for name in IN_PLACE):
            rest = schema.get("unevaluatedProperties")
        if rest is not None:
            obj = replace(obj, additional=reader.node(rest, place.at("additionalProperties")))
        return self._counted(self._required(obj, schema, place), schema, place)

    def _required(self, obj: Object, schema: dict[str, Any], place: Place) -> Object:
        required: list[str] = []
        properties = dict(obj.properties)
        with self._reader.noting(place, "required"):
            required = list_of(schema.get("required", []))
            for name in required:
                if not isinstance(name, str):
                    raise MalformedError(f"{name!r} is not a name")
                if obj.additional is None and name not in properties:
                    # A required property is a named one, even without a schema.
                    opened = replace(obj, is_open=True)
                    properties[name] = self._reader.intersections.property_of(opened, name)
        return replace(obj, properties=properties, required=tuple(dict.fromkeys(required)))

    def _counted(self, obj: Object, schema: dict[str, Any], place: Place) -> Object:
        """Add the limits on the number and the names of properties to an object node."""
        if "propertyNames" in schema:
            names = self._reader.node(schema["propertyNames"], place.at("propertyNames"))
            obj = replace(obj, names=None if names is ANY else names)
        with self._reader.noting(place, "minProperties"):
            obj = replace(obj, min_properties=least_of(schema.get("minProperties", 0)))
        if "maxProperties" in schema:
            with self._reader.noting(place, "maxProperties"):
                obj = replace(obj, max_properties=most_of(schema["maxProperties"]))
        return obj
