"""A short value of a JSON schema, to estimate how long an answer is at least."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_EMPTY: dict[str, Any] = {"array": [], "object": {}, "null": None, "boolean": True, "string": ""}


def shortest_value(schema: Any) -> Any:
    """Return a value that is about as short as the shortest one that a schema allows.

    Keywords such as `pattern` and `not` are ignored, so the value is not always valid.
    """
    return _Reader(schema).shortest(schema)


class _Reader:
    def __init__(self, root: Any) -> None:
        self._root = root
        self._found: dict[str, Any] = {}  # by reference; each is read once

    def shortest(self, schema: Any) -> Any:
        if not isinstance(schema, Mapping):
            return 0
        if isinstance(ref := schema.get("$ref"), str):
            return self._of_reference(ref)
        if "const" in schema:
            return schema["const"]
        if _is_list(schema.get("enum")):
            return min(schema["enum"], key=_length)
        for key in ("anyOf", "oneOf"):
            if _is_list(schema.get(key)):
                return min(map(self.shortest, schema[key]), key=_length)
        kinds = schema.get("type", "object" if "required" in schema else "integer")
        if _is_list(kinds):
            kinds = min(kinds, key=lambda name: _length(_EMPTY.get(name, 0)))
        return self._of_kind(kinds, schema)

    def _of_kind(self, kind: Any, schema: Mapping[str, Any]) -> Any:
        if kind == "object":
            properties = schema.get("properties", {})
            return {
                name: self.shortest(properties.get(name)) for name in schema.get("required", ())
            }
        if kind == "array" and schema.get("minItems"):
            return [self.shortest(schema.get("items"))] * min(schema["minItems"], 1_000)
        if kind == "string":
            return "a" * min(schema.get("minLength", 0), 10_000)
        return _EMPTY.get(kind, 0)

    def _of_reference(self, ref: str) -> Any:
        if ref not in self._found:
            self._found[ref] = 0  # inside itself
            target = self._root
            for part in ref.removeprefix("#").split("/")[1:]:
                target = target.get(part.replace("~1", "/").replace("~0", "~"), {})
            self._found[ref] = self.shortest(target)
        return self._found[ref]


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


def _length(value: Any) -> int:
    return len(json.dumps(value))
