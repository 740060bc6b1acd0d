"""Look up `$ref` within a document: pointers, anchors, and resources with an `$id`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

# Keywords that contain schemas: by name, in a list, or one. Other keywords contain values.
BY_NAME = (
    "properties",
    "patternProperties",
    "$defs",
    "definitions",
    "dependentSchemas",
    "dependencies",
)
IN_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
SINGLE = (
    "items",
    "additionalProperties",
    "additionalItems",
    "unevaluatedProperties",
    "unevaluatedItems",
    "propertyNames",
    "contains",
    "not",
    "if",
    "then",
    "else",
    "contentSchema",
)


def inner_schemas(schema: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the schemas directly inside a schema, each with its relative location."""
    for key in BY_NAME:
        if isinstance(schema.get(key), dict):
            yield from (((key, str(name)), value) for name, value in schema[key].items())
    for key in IN_LISTS:
        if isinstance(schema.get(key), list):
            yield from (((key, str(index)), value) for index, value in enumerate(schema[key]))
    for key in SINGLE:
        if isinstance(schema.get(key), dict):
            yield (key,), schema[key]


class References:
    """The targets of references in a document.

    Args:
        root: The whole schema.
    """

    def __init__(self, root: Any) -> None:
        self._root = root
        self._base_of: dict[int, str] = {}  # schemas by identity, with the base of their resource
        self._resources: dict[str, Any] = {}
        self._anchors: dict[tuple[str, str], Any] = {}
        self._dynamic: dict[str, list[Any]] = {}
        is_early = isinstance(root, dict) and "/draft-0" in str(root.get("$schema"))
        todo: list[tuple[Any, str]] = [(root, "")]
        self._resources[""] = root
        while todo:
            schema, base = todo.pop()
            if not isinstance(schema, dict) or id(schema) in self._base_of:
                continue
            own = schema.get("$id", schema.get("id"))
            if is_early and "$ref" in schema:  # before 2019-09, only the reference counts
                own = None
            if isinstance(own, str) and own.startswith("#"):  # an anchor of draft 7
                self._anchors[base, own[1:]] = schema
            elif isinstance(own, str):
                base = urldefrag(urljoin(base, own)).url
                self._resources[base] = schema
            self._base_of[id(schema)] = base
            for key in ("$anchor", "$dynamicAnchor"):
                if isinstance(schema.get(key), str):
                    self._anchors[base, schema[key]] = schema
            if isinstance(schema.get("$dynamicAnchor"), str):
                self._dynamic.setdefault(schema["$dynamicAnchor"], []).append(schema)
            todo += [(inner, base) for _, inner in inner_schemas(schema)]

    def find(self, schema: dict[str, Any], reference: str) -> Any:
        """Return the target of a reference in a schema.

        Raises:
            LookupError: There is no such target in this document.
        """
        base = self._base_of.get(id(schema), "")
        url, fragment = urldefrag(urljoin(base, reference) if base else reference)
        if not reference.partition("#")[0]:
            url = base
        if url not in self._resources:
            raise LookupError(f"{reference!r} is not in this schema")
        fragment = unquote(fragment)
        if fragment and not fragment.startswith("/"):
            found = self._anchors.get((url, fragment))
        else:
            found = self._pointed(self._resources[url], fragment, url)
        if not isinstance(found, (dict, bool)):
            raise LookupError(f"{reference!r} does not refer to a schema")  # noqa: TRY004
        return found

    def _pointed(self, found: Any, pointer: str, url: str) -> Any:
        """Return the target of a JSON pointer in a resource, or None."""
        if pointer == "/" and isinstance(found, dict) and "" not in found:
            return found  # some writers mean the root by this
        for part in pointer.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict):
                found = found.get(key)
            elif isinstance(found, list) and key.isdigit() and int(key) < len(found):
                found = found[int(key)]
            else:
                return None
            if isinstance(found, dict):  # a reference may make any dictionary a schema
                self._base_of.setdefault(id(found), url)
        return found

    def is_dynamic(self, name: str) -> bool:
        """Whether a dynamic reference may have several targets."""
        return len(self._dynamic.get(name, [])) > 1
