"""Parts of a JSON schema: keywords, inner schemas and definitions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from stars_engine.problems import ConfigError, Problem

TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
KEYWORDS = frozenset(
    {
        *("type", "enum", "const", "$ref", "$dynamicRef", "anyOf", "oneOf", "allOf", "not"),
        *("if", "then", "else", "properties", "required", "additionalProperties"),
        *("patternProperties", "propertyNames", "minProperties", "maxProperties"),
        *("dependentRequired", "dependentSchemas", "dependencies", "unevaluatedProperties"),
        *("items", "prefixItems", "additionalItems", "unevaluatedItems", "contains"),
        *("minContains", "maxContains", "minItems", "maxItems", "uniqueItems"),
        *("pattern", "format", "minLength", "maxLength", "minimum", "maximum", "multipleOf"),
        *("exclusiveMinimum", "exclusiveMaximum"),
        *("contentEncoding", "contentMediaType", "contentSchema"),
        # of earlier drafts
        *("$recursiveRef", "disallow", "divisibleBy", "extends"),
    }
)
ANNOTATIONS = frozenset(
    {
        *("$schema", "$id", "$anchor", "$defs", "definitions", "$comment", "$vocabulary"),
        *("$dynamicAnchor", "$recursiveAnchor"),
        *("title", "description", "default", "examples", "example", "deprecated", "readOnly"),
        *("writeOnly", "discriminator", "nullable", "propertyOrdering", "property_ordering"),
        *("externalDocs", "xml", "id"),
    }
)
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_IN_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_SINGLE = (
    *("items", "additionalProperties", "additionalItems", "contains", "not", "if", "then"),
    *("else", "propertyNames", "unevaluatedProperties", "unevaluatedItems", "contentSchema"),
)


def problem(owner: str, path: str, message: str) -> ConfigError:
    """Return an error with the path of the invalid part."""
    return ConfigError(owner, [Problem(path, message)])


def at(path: str, key: str) -> str:
    """Return the path of a part."""
    return f"{path}.{key}" if path else key


def rooted(schema: dict[str, Any]) -> dict[str, Any]:
    """Inline the definition if a schema is only a reference to it.

    pydantic writes recursive models as `{"$ref": ..., "$defs": ...}`, but chat templates read
    `properties`. All references stay valid.
    """
    seen: set[str] = set()
    while (name := _root_reference(schema)) is not None and name not in seen:
        seen.add(name)
        _, table, key = name.split("/", 2)
        target = schema.get(table, {}).get(key)
        if not isinstance(target, dict):
            break
        rest = {name: part for name, part in schema.items() if name not in ("$ref", "allOf")}
        schema = {**target, **rest}
    return schema


def referred(schema: dict[str, Any]) -> dict[str, Any]:
    """Remove definitions that nothing in the schema refers to."""
    tables = [key for key in ("$defs", "definitions") if isinstance(schema.get(key), dict)]
    kept: set[str] = set()
    waiting = [{name: part for name, part in schema.items() if name not in tables}]
    while waiting:
        for reference in references(waiting.pop()):
            for table in tables:
                name = reference.removeprefix(f"#/{table}/").replace("~1", "/").replace("~0", "~")
                found = schema[table].get(name) if name != reference else None
                if found is not None and reference not in kept:
                    waiting.append(found)
                kept |= {reference} if found is not None else set()
    changed = dict(schema)
    for table in tables:
        named = {
            name: part
            for name, part in schema[table].items()
            if f"#/{table}/" + name.replace("~", "~0").replace("/", "~1") in kept
        }
        changed = {**changed, table: named}
        if not named:
            del changed[table]
    return changed


def without_titles(schema: dict[str, Any]) -> dict[str, Any]:
    """Remove the titles of parts, which cost tokens and only repeat names."""
    if "title" in schema:
        schema = {name: part for name, part in schema.items() if name != "title"}
    return mapped(schema, without_titles)


def mapped(
    schema: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    """Apply a change to the schemas directly inside a schema; values such as `const` stay."""
    made: dict[str, Any] = {}
    for key, part in schema.items():
        if key in _BY_NAME and isinstance(part, Mapping):
            made[key] = {name: _changed(inner, change) for name, inner in part.items()}
        elif key in _IN_LISTS and isinstance(part, list):
            made[key] = [_changed(inner, change) for inner in part]
        elif key in _SINGLE:
            made[key] = _changed(part, change)
        else:
            made[key] = part
    return made


def _changed(value: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    return change(dict(value)) if isinstance(value, Mapping) else value


def _root_reference(schema: Mapping[str, Any]) -> str | None:
    """Return the reference if a schema consists only of a reference to a definition."""
    parts = schema.get("allOf")
    only = schema
    if isinstance(parts, list) and len(parts) == 1 and isinstance(parts[0], Mapping):
        only = parts[0] if set(parts[0]) == {"$ref"} else schema  # pydantic 1
    name = only.get("$ref")
    if not isinstance(name, str) or set(schema) - {"$ref", "allOf"} - ANNOTATIONS:
        return None
    is_local = name.startswith(("#/$defs/", "#/definitions/")) and name.count("/") == 2
    return name if is_local else None


def references(schema: Any) -> Iterator[str]:
    """Yield all references in a schema."""
    if isinstance(schema, Mapping):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"]
        for part in schema.values():
            yield from references(part)
    elif isinstance(schema, list | tuple):
        for part in schema:
            yield from references(part)
