"""Vendors' own ways to write a schema, as JSON schema has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stars_engine.schema_formats.parts import TYPES, at, mapped, problem

# --- Gemini: an OpenAPI schema with types in capitals ---


_SNAKE = {
    "any_of": "anyOf",
    "min_items": "minItems",
    "max_items": "maxItems",
    "min_length": "minLength",
    "max_length": "maxLength",
    "min_properties": "minProperties",
    "max_properties": "maxProperties",
    "additional_properties": "additionalProperties",
    "property_ordering": "propertyOrdering",
}
_SIZES = tuple(name for name in _SNAKE.values() if name.startswith(("min", "max")))
_OF_NUMBERS = ("float", "double", "int32", "int64", "enum")  # formats that say nothing here


def as_json_schema(schema: Mapping[str, Any], owner: str = "", path: str = "") -> dict[str, Any]:
    """Return a schema with types in small letters: Gemini's as JSON schema has it, others as is.

    Raises:
        ConfigError: A type is unknown, or it is nested too deep to be read.
    """
    try:
        return _read(schema, owner, path)
    except RecursionError:
        message = "it is nested too deep. Hint: name its parts in $defs, and refer to them"
        raise problem(owner, path, message) from None


def _read(schema: Mapping[str, Any], owner: str, path: str) -> dict[str, Any]:
    kinds: list[Any] = []

    def look(inner: dict[str, Any]) -> dict[str, Any]:
        kinds.append(inner.get("type"))
        return mapped(inner, look)

    look({_SNAKE.get(key, key): part for key, part in schema.items()})
    is_gemini = any(isinstance(kind, str) and kind.isupper() for kind in kinds)
    return _of_gemini(dict(schema), owner, path) if is_gemini else dict(schema)


def _of_gemini(schema: dict[str, Any], owner: str, path: str) -> dict[str, Any]:
    made = {_SNAKE.get(key, key): part for key, part in schema.items()}
    kind = made.get("type")
    if isinstance(kind, str):
        kind = str(getattr(kind, "value", kind)).lower()
        if kind not in TYPES:
            allowed = ", ".join(name.upper() for name in TYPES)
            raise problem(owner, at(path, "type"), f"{kind!r} is no type. Allowed: {allowed}")
        made["type"] = kind
    for key in _SIZES:
        if isinstance(made.get(key), str):  # as protobuf writes 64-bit integers
            made[key] = int(made[key]) if made[key].isdecimal() else made[key]
    if made.get("format") in _OF_NUMBERS:
        del made["format"]
    order = made.pop("propertyOrdering", None)
    properties = made.get("properties")
    if isinstance(order, list) and isinstance(properties, Mapping):
        names = [*(name for name in order if name in properties), *properties]
        made["properties"] = {name: properties[name] for name in names}
    made = mapped(made, lambda inner: _of_gemini(inner, owner, path))
    if made.pop("nullable", False) is True:
        made = _or_null(made)
    return made


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    if "type" in schema:
        schema = {**schema, "type": [schema["type"], "null"]}
    if isinstance(schema.get("enum"), list):
        schema = {**schema, "enum": [*schema["enum"], None]}
    return schema


# --- Cohere: parameters with types of Python ---


_PYTHON_TYPES = {
    "str": "string",
    "string": "string",
    "int": "integer",
    "integer": "integer",
    "float": "number",
    "number": "number",
    "bool": "boolean",
    "boolean": "boolean",
    "dict": "object",
    "object": "object",
    "list": "array",
    "array": "array",
}


def of_cohere(given: Any, owner: str, path: str) -> dict[str, Any]:
    """Return a schema of parameters as Cohere's first version has them.

    Raises:
        ConfigError: They are none, or a type is unknown.
    """
    if given is None:
        return {"type": "object", "properties": {}}
    if not isinstance(given, Mapping) or not all(
        isinstance(part, Mapping) for part in given.values()
    ):
        raise problem(owner, path, "parameters are a mapping of names to their definitions")
    properties = {}
    for name, part in given.items():
        others = set(part) - {"type", "description", "required"}
        if others:
            message = (
                f"{min(others)!r} is no key of a parameter. Allowed: type, description, required"
            )
            raise problem(owner, at(path, name), message)
        about = {"description": part["description"]} if part.get("description") else {}
        properties[name] = {**_of_python(part.get("type"), owner, at(path, name)), **about}
    required = [name for name, part in given.items() if part.get("required")]
    return {"type": "object", "properties": properties, "required": required}


def _of_python(kind: Any, owner: str, path: str) -> dict[str, Any]:
    name, bracket, rest = str(kind).strip().partition("[")
    found = _PYTHON_TYPES.get(name.strip().lower())
    arguments = rest.removesuffix("]")
    is_whole = not bracket or (rest.endswith("]") and found in ("array", "object"))
    if found is None or not is_whole:
        allowed = "str, int, float, bool, list, dict, List[...], Dict[str, ...]"
        raise problem(owner, at(path, "type"), f"{kind!r} is no type. Allowed: {allowed}")
    if not bracket:
        return {"type": found}
    if found == "array":
        return {"type": found, "items": _of_python(arguments, owner, path)}
    key, comma, inner = arguments.partition(",")
    if key.strip() != "str" or not comma:
        raise problem(owner, at(path, "type"), f"{kind!r} has keys that are no text")
    return {"type": found, "additionalProperties": _of_python(inner, owner, path)}
