"""Convert vendor-specific schema dialects to JSON Schema."""

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
_OF_NUMBERS = ("float", "double", "int32", "int64", "enum")  # formats that add no constraint


def as_json_schema(schema: Mapping[str, Any], owner: str = "", path: str = "") -> dict[str, Any]:
    """Convert a Gemini schema, with types in capitals, or OpenAPI's `nullable` to JSON Schema.

    Other schemas are returned unchanged.

    Raises:
        ConfigError: A type is unknown, or the schema is nested too deeply.
    """
    try:
        return _read(schema, owner, path)
    except RecursionError:
        message = (
            "the schema is nested too deeply. Hint: define its parts in $defs and refer to them"
        )
        raise problem(owner, path, message) from None


def _read(schema: Mapping[str, Any], owner: str, path: str) -> dict[str, Any]:
    kinds: list[Any] = []

    def look(inner: dict[str, Any]) -> dict[str, Any]:
        kinds.append(inner.get("type"))
        return mapped(inner, look)

    look({_SNAKE.get(key, key): part for key, part in schema.items()})
    is_gemini = any(isinstance(kind, str) and kind.isupper() for kind in kinds)
    return _of_gemini(dict(schema), owner, path) if is_gemini else _of_openapi(dict(schema))


def _of_gemini(schema: dict[str, Any], owner: str, path: str) -> dict[str, Any]:
    made = {_SNAKE.get(key, key): part for key, part in schema.items()}
    kind = made.get("type")
    if isinstance(kind, str):
        kind = str(getattr(kind, "value", kind)).lower()
        if kind not in TYPES:
            allowed = ", ".join(name.upper() for name in TYPES)
            message = f"unknown type {kind!r}; expected one of {allowed}. Hint: correct it"
            raise problem(owner, at(path, "type"), message)
        made["type"] = kind
    for key in _SIZES:
        if isinstance(made.get(key), str):  # protobuf writes 64-bit integers as strings
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


def _of_openapi(schema: dict[str, Any]) -> dict[str, Any]:
    """Replace `nullable`, which OpenAPI 3.0 has in place of the type "null"."""
    made = mapped(schema, _of_openapi)
    if made.get("nullable") is True:
        made = _or_null({key: part for key, part in made.items() if key != "nullable"})
    return made


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    if "type" in schema:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        schema = {**schema, "type": [*kinds, *(["null"] if "null" not in kinds else [])]}
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
    """Return a JSON schema for parameters in the format of version 1 of Cohere's API.

    Raises:
        ConfigError: The parameters are invalid, or a type is unknown.
    """
    if given is None:
        return {"type": "object", "properties": {}}
    if not isinstance(given, Mapping) or not all(
        isinstance(part, Mapping) for part in given.values()
    ):
        raise problem(
            owner,
            path,
            "parameters must be a mapping of names to definitions. Hint: for example, {'city': "
            "{'type': 'str'}}",
        )
    properties = {}
    for name, part in given.items():
        others = set(part) - {"type", "description", "required"}
        if others:
            message = (
                f"unknown key {min(others)!r} of a parameter; expected type, description or "
                "required. Hint: remove it"
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
        message = f"unknown type {kind!r}; expected one of {allowed}. Hint: correct it"
        raise problem(owner, at(path, "type"), message)
    if not bracket:
        return {"type": found}
    if found == "array":
        return {"type": found, "items": _of_python(arguments, owner, path)}
    key, comma, inner = arguments.partition(",")
    if key.strip() != "str" or not comma:
        raise problem(
            owner, at(path, "type"), f"the keys of {kind!r} must be str. Hint: use Dict[str, ...]"
        )
    return {"type": found, "additionalProperties": _of_python(inner, owner, path)}
