"""Shorten JSON schemas for prompts, where each character costs context."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from stars_engine.schema_formats.parts import mapped, references, referred, without_titles

_TABLES = ("$defs", "definitions")
_SILENT = ("$schema", "$comment", "discriminator")  # they constrain nothing
_KINDS = {"boolean": bool, "string": str, "integer": int, "number": (int, float)}


def compacted(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a shorter schema that allows the same values.

    Titles, empty defaults and repeated types are left out. Definitions that are used once stand
    where they are used, and recursion refers to the root.
    """
    schema = _with_root(_shortened(without_titles(schema)))
    schema = referred(schema)
    counts = Counter(references(schema))
    single = {
        f"#/{table}/{name}": part
        for table in _TABLES
        for name, part in schema.get(table, {}).items()
        if counts[f"#/{table}/{name}"] == 1 and isinstance(part, Mapping)
    }
    return referred(_inlined(schema, single)) if single else schema


def _shortened(schema: dict[str, Any]) -> dict[str, Any]:
    made = {key: part for key, part in schema.items() if key not in _SILENT}
    if "default" in made and ("const" in made or made["default"] in (None, [], {})):
        del made["default"]
    if "type" in made and _implies(made):
        del made["type"]
    branches = made.get("anyOf")
    if "type" not in made and isinstance(branches, list):
        kinds = [part["type"] for part in branches if _is_plain(part)]
        if len(kinds) == len(branches):  # an optional field
            made = {key: kinds if key == "anyOf" else part for key, part in made.items()}
            made["type"] = made.pop("anyOf")
    return mapped(made, _shortened)


def _is_plain(part: Any) -> bool:
    if not isinstance(part, Mapping):
        return False
    return set(part) <= {"type", "title"} and isinstance(part.get("type"), str)


def _implies(schema: Mapping[str, Any]) -> bool:
    """Whether the values of a schema tell their type."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    kind = _KINDS.get(schema["type"]) if isinstance(schema["type"], str) else None
    if kind is None or not isinstance(values, list):
        return False
    return all(
        isinstance(value, kind) and (kind is bool or not isinstance(value, bool))  # type: ignore[arg-type]
        for value in values
    )


def _with_root(schema: dict[str, Any]) -> dict[str, Any]:
    """Replace references to definitions that repeat the whole schema."""
    body = _body(schema)
    repeated = {
        f"#/{table}/{name}"
        for table in _TABLES
        for name, part in schema.get(table, {}).items()
        if isinstance(part, Mapping) and _body(part) == body
    }

    def replaced(part: dict[str, Any]) -> dict[str, Any]:
        if part.get("$ref") in repeated:
            part = {**part, "$ref": "#"}
        return mapped(part, replaced)

    return replaced(schema) if repeated else schema


def _body(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {key: part for key, part in schema.items() if key not in (*_TABLES, "description")}


def _inlined(schema: dict[str, Any], single: Mapping[str, Any]) -> dict[str, Any]:
    """Replace references to definitions that are used once."""
    target = single.get(schema.get("$ref", ""))
    if target is not None:
        rest = {key: part for key, part in schema.items() if key != "$ref"}
        schema = {**target, **rest}
    return mapped(schema, lambda part: _inlined(part, single))
