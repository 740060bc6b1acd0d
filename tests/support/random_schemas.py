"""Random JSON schemas with every supported keyword, and some unsupported ones."""

from __future__ import annotations

import random
from typing import Any

LEAVES: list[dict[str, Any]] = [
    {"type": "string", "maxLength": 6},
    {"type": "string", "minLength": 2, "maxLength": 4},
    {"type": "string", "pattern": "^[a-c]{2,4}$"},
    {"type": "string", "pattern": r"^\d{1,5}-x?$"},
    {"type": "string", "pattern": r"^(?!no)\w{1,6}$"},
    {"type": "string", "pattern": r"^[^\s\d]{1,3}(\.[A-Z]|\\)$"},
    {"type": "string", "pattern": "^(a|b$|c(?=d)d)", "maxLength": 6},
    {"type": "string", "not": {"enum": ["a", "b"]}, "maxLength": 3},
    *({"type": "string", "format": name} for name in ("date", "uuid", "time", "ipv4")),
    *({"type": name} for name in ("integer", "number", "boolean", "null")),
    {"type": ["integer", "null"]},
    {"type": "integer", "minimum": -7, "maximum": 1203},
    {"type": "integer", "exclusiveMinimum": 99, "multipleOf": 4},
    {"type": "integer", "not": {"const": 3}, "minimum": 0, "maximum": 9},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 2.5},
    {"type": "number", "minimum": -0.25, "exclusiveMaximum": 0.3},
    {"type": "number", "minimum": -12.5, "maximum": -3, "multipleOf": 0.25},
    {"type": "number", "multipleOf": 0.1},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "multipleOf": 0.01},
    {"enum": ["a", "Größe", 1, 2.5, None, True, "x y", {"a": []}]},
    {"type": ["string", "integer"], "enum": ["a", 1, 2.5, None]},
    *({"const": value} for value in ('a\n"b"', 17, [1, "2"], {"k": {}}, 9007199254740993)),
]
# Schemas that are held, and may be long or deep.
_OBJECTS = [
    "tagged",
    "pattern",
    "names",
    "all",
    "if",
    "dependent",
    "counted",
    "closed",
    "reference",
]
_REFUSED: list[dict[str, Any]] = [
    {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
    {"type": "array", "contains": {"type": "integer"}},
    {"oneOf": [{"type": "integer"}, {"minimum": 3}]},
    {"type": "object", "additionalProperties": {"type": "null"}, "minProperties": 2},
    {"type": "string", "pattern": r"(a)\1"},
    {"not": {"items": {"type": "null"}}},
    {"$ref": "#/$defs/nowhere"},
]


def random_document(rng: random.Random, *, unsupported: bool = False) -> dict[str, Any]:
    """Return a schema with definitions that refer to themselves and to each other.

    Args:
        rng: What is drawn from.
        unsupported: Whether a few parts may be such that no grammar holds them.
    """
    schema = random_schema(rng, new=True, unsupported=unsupported)
    tree = {
        "type": "object",
        "properties": {
            "name": random_leaf(rng),
            "kids": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2},
            "b c": {"$ref": "#/$defs/b~1c"},
        },
        "required": ["name"],
    }
    other = {
        "$anchor": "other",
        "anyOf": [{"$ref": "#/$defs/tree"}, random_leaf(rng), {"type": "null"}],
    }
    return {**schema, "$defs": {"tree": tree, "b/c": other}}


def random_leaf(rng: random.Random) -> dict[str, Any]:
    return dict(rng.choice(LEAVES))


def random_schema(
    rng: random.Random, depth: int = 0, *, new: bool = False, unsupported: bool = False
) -> dict[str, Any]:
    """Return a schema; `new` where it stands in a document of `random_document`."""

    def inner() -> dict[str, Any]:
        return random_schema(rng, depth + 1, new=new, unsupported=unsupported)

    if unsupported and rng.random() < 0.01:
        return dict(rng.choice(_REFUSED))
    kinds = ["leaf", "array", "tuple", "any", "object", "object"]
    kind = rng.choice([*kinds, *(_OBJECTS if new else [])] if depth < 3 else [""])
    if kind == "array":
        return {"type": "array", "items": inner(), "minItems": rng.randint(0, 2), "maxItems": 3}
    if kind == "tuple":
        items = [inner() for _ in range(rng.randint(1, 3))]
        least = rng.randint(0, len(items)) if new else len(items)
        return {"type": "array", "prefixItems": items, "items": False, "minItems": least}
    if kind == "any":
        return {"anyOf": [inner(), inner()]}
    if kind == "object":
        names = rng.sample(["a", "b c", "ü", "name", 'x"y', "n"], rng.randint(0, 4))
        required = rng.sample(names, rng.randint(0, len(names)))
        properties = {name: inner() for name in names}
        return {"type": "object", "properties": properties, "required": required}
    return _object(kind, rng, inner) if kind in _OBJECTS else random_leaf(rng)


def _object(kind: str, rng: random.Random, inner: Any) -> dict[str, Any]:  # noqa: PLR0911
    properties = {name: inner() for name in rng.sample(["a1", "a2", "b", "c"], 3)}
    names = list(properties)
    plain = {"type": "object", "properties": properties, "required": names[:1]}
    match kind:
        case "tagged":
            branches = [
                {
                    "type": "object",
                    "properties": {"kind": {"const": tag}, **properties},
                    "required": names[: rng.randint(0, 2)],
                }
                for tag in ("x", "y")
            ]
            extra = {"discriminator": {"propertyName": "kind"}} if rng.random() < 0.5 else {}
            return {"oneOf": branches, **extra}
        case "pattern":
            patterns = {"^a[12]$": inner(), rng.choice(["^a", "1$", "^b?$"]): inner()}
            rest = rng.choice([{}, {"additionalProperties": rng.choice([False, inner()])}])
            return {
                "type": "object",
                "properties": properties,
                "patternProperties": patterns,
            } | rest
        case "names":
            keys = [{"enum": ["p", "q\n"]}, {"pattern": "^[a-z]{1,3}$"}, {"maxLength": 2}]
            return {
                "type": "object",
                "additionalProperties": inner(),
                "propertyNames": rng.choice(keys),
                "maxProperties": 3,
            }
        case "all":
            other = {"properties": {"a1": inner(), "d": inner()}, "required": ["d"]}
            return {"allOf": [plain, other], "unevaluatedProperties": rng.choice([False, True])}
        case "if":
            given = {"properties": {"b": {"type": ["string", "null"]}}, "required": ["b"]}
            return {
                **plain,
                "if": given,
                "then": {"required": names},
                "additionalProperties": False,
            }
        case "dependent":
            return {**plain, "dependentRequired": {names[0]: names[1:2]}}
        case "counted":
            return {**plain, "minProperties": 2, "maxProperties": rng.randint(2, 3)}
        case "closed":
            return {**plain, "additionalProperties": rng.choice([False, inner()])}
    references = ["#/$defs/tree", "#other", "#/$defs/b~1c"]
    beside = [{}, {}, {"description": "x"}, {"type": ["object", "null"]}, {"maxProperties": 2}]
    return {"$ref": rng.choice(references), **rng.choice(beside)}
