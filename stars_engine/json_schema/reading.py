"""Read JSON schemas as nodes, and list what a grammar cannot express."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import reduce
from typing import Any

from stars_engine.json_schema import tags
from stars_engine.json_schema.intersections import Intersections, TooComplexError, array
from stars_engine.json_schema.keywords import UNSUPPORTED
from stars_engine.json_schema.negation import CONDITIONAL, Negation
from stars_engine.json_schema.nodes import (
    ANY,
    NEVER,
    Alternative,
    Node,
    Object,
    Reference,
    node_of_values,
)
from stars_engine.json_schema.patterns import UnsupportedPatternError
from stars_engine.json_schema.references import References
from stars_engine.json_schema.supported import Place, SupportedSchema, Unsupported
from stars_engine.json_schema.typed import IN_PLACE, KEYWORDS, TypedKeywords
from stars_engine.json_schema.values import MalformedError, count, list_of
from stars_engine.threads.give_way import give_way

_MAX_DEFINITIONS = 10_000
# Known keywords, of this or earlier drafts, that a grammar cannot express.
_UNHELD = {
    "contentSchema": "a grammar cannot constrain the content of a string",
    "disallow": "keywords of draft 3 are not supported",
    "extends": "keywords of draft 3 are not supported",
    "divisibleBy": "keywords of draft 3 are not supported",
}


def read_schema(schema: Any, *, closed: bool = True) -> SupportedSchema:
    """Return the part of a schema that a grammar can express, and a list of the rest.

    Args:
        schema: A JSON schema, of draft 2020-12 or earlier.
        closed: Whether objects have only named properties if the schema does not say. An object
            that several schemas describe stays open.
    """
    reader = SchemaReader(schema, closed=closed)
    supported = reader.read()
    if reader.overlapping and len(reader.overlapping) == len(supported.unsupported):
        again = SchemaReader(schema, closed=closed, exclusive=frozenset(reader.overlapping)).read()
        if not again.unsupported and again.emptied == supported.emptied:
            return again
    return supported


class SchemaReader:
    """Reads one schema document.

    Args:
        root: The whole schema.
        closed: Whether objects have only named properties if the schema does not say.
        exclusive: Locations where each branch of `oneOf` must exclude the values of the others.

    Attributes:
        overlapping: Locations where branches of `oneOf` may have common values, once it is read.
    """

    def __init__(self, root: Any, *, closed: bool, exclusive: frozenset[str] = frozenset()) -> None:
        self._root, self._closed, self._exclusive = root, closed, exclusive
        self.overlapping: list[str] = []
        self.references = References(root)
        self._unsupported: dict[Unsupported, None] = {}
        self._emptied: dict[str, None] = {}
        self._to_read: dict[str, tuple[Any, Place]] = {}
        self._bodies: dict[str, Node] = {}
        self._flat: dict[str, Node] = {}
        self._dereferencing: list[str] = []
        self._is_tainted = False
        self._names: dict[int, str] = {}
        self._choices: list[tuple[Place, list[Node], list[Node]]] = []
        self._excluded: list[tuple[Place, list[Node]]] = []
        self._negation = Negation(self, is_partial=bool(exclusive))
        self._typed = TypedKeywords(self)
        self.intersections = Intersections(self._name_of)

    def read(self) -> SupportedSchema:
        """Return the result for the whole document."""
        root: Node = ANY
        try:
            root = self.node(self._root, Place("#"))
            while pending := [name for name in self._to_read if name not in self._bodies]:
                for name in pending:
                    self._body(name)
            for place, branches, others in self._choices:
                self._check_choice(place, branches, others)
            for place, branches in self._excluded:
                if any(map(self._is_empty, branches)):
                    self.add(place, "oneOf", "no value is left for a branch")
        except RecursionError:
            self.add(Place("#"), "schema", "the schema is nested too deeply")
        except TooComplexError as error:
            self.add(Place("#"), "schema", str(error))
        return SupportedSchema(
            root,
            tuple(self._unsupported),
            tuple(self._emptied),
            self.dereference,
            self.intersections,
        )

    def add(self, place: Place, keyword: str, reason: str) -> None:
        """Record a requirement that cannot be expressed."""
        if not place.is_wide:
            self._unsupported[Unsupported(place.path, keyword, reason)] = None

    @contextmanager
    def noting(self, place: Place, keyword: str) -> Iterator[None]:
        """Record a keyword that cannot be expressed, and continue without it."""
        try:
            yield
        except (MalformedError, UnsupportedPatternError, TooComplexError, LookupError) as error:
            self.add(place, keyword, str(error))

    # --- references ---

    def _name_of(self, node: Node) -> str:
        name = self._names.setdefault(id(node[0]), f"node {len(self._names)}")
        self._bodies[name] = node
        return name

    def _body(self, name: str) -> Node:
        if name not in self._bodies:
            if len(self._bodies) > _MAX_DEFINITIONS:
                raise TooComplexError(f"more than {_MAX_DEFINITIONS} definitions")
            self._bodies[name] = self.node(*self._to_read[name])
        return self._bodies[name]

    def dereference(self, reference: Reference) -> Node:
        """Replace a reference by alternatives without references.

        A reference that leads directly back to itself has no values.
        """
        node = ANY
        for name in reference.names:
            node = self.intersections.intersect(node, self._flattened(name))
        return self._without_references(node)

    def _flattened(self, name: str) -> Node:
        if name in self._flat:
            return self._flat[name]
        if name in self._dereferencing:
            self._is_tainted = True
            return NEVER
        self._dereferencing.append(name)
        node = self._without_references(self._body(name))
        self._dereferencing.pop()
        if not self._dereferencing:
            self._is_tainted = False
        if not self._is_tainted:
            self._flat[name] = node
        return node

    def _without_references(self, node: Node) -> Node:
        if not any(isinstance(part, Reference) for part in node):
            return node
        found: list[Alternative] = []
        for part in node:
            found += self.dereference(part) if isinstance(part, Reference) else (part,)
        return tuple(found)

    def _referred(self, schema: dict[str, Any], keyword: str, place: Place) -> Node:
        reference = schema[keyword]
        if not isinstance(reference, str):
            raise MalformedError(f"{reference!r} is not a reference")
        if keyword == "$recursiveRef" and "$recursiveAnchor" in str(self._root):
            raise MalformedError("where it leads depends on where the schema is used")
        if keyword == "$dynamicRef" and self.references.is_dynamic(reference.partition("#")[2]):
            raise MalformedError("where it leads depends on where the schema is used")
        target = self.references.find(schema, reference)
        if isinstance(target, bool):
            return ANY if target else NEVER
        name = f"{id(target)} {place.is_part} {place.is_wide}"
        path = reference if reference.startswith("#") else f"#({reference})"
        self._to_read.setdefault(name, (target, Place(path, place.is_part, place.is_wide)))
        return (Reference((name,)),)

    # --- schemas ---

    def node(self, schema: Any, place: Place) -> Node:
        """Return the values that a schema allows."""
        give_way()
        if isinstance(schema, bool) or schema == {}:
            return ANY if schema is not False else NEVER
        if not isinstance(schema, dict):
            self.add(place, "schema", f"{schema!r} is not a schema")
            return ANY
        is_parted = place.is_part or _is_in_parts(schema)
        node, has_base = ANY, False
        for keyword in schema:
            if keyword in _UNHELD:
                self.add(place, keyword, _UNHELD[keyword])
            elif keyword == UNSUPPORTED:
                self.add(place, "type", str(schema[keyword]))
            if keyword not in KEYWORDS:
                before = node
                with self.noting(place, keyword):
                    applied = self._apply(keyword, schema, place, is_parted=is_parted)
                    node = self.intersections.intersect(node, applied)
                if before != NEVER and node == NEVER and not place.is_wide:
                    self._emptied[f"`{keyword}` at {place.path}"] = None
            elif not has_base:
                has_base = True
                base = self._typed.read(schema, place, is_open=is_parted or not self._closed)
                node = self.intersections.intersect(node, base)
        return self._evaluated(node, schema, place)

    def _apply(
        self, keyword: str, schema: dict[str, Any], place: Place, *, is_parted: bool
    ) -> Node:
        """Return the values that a keyword allows."""
        match keyword:
            case "const" | "enum":
                value = schema[keyword]
                return node_of_values([value] if keyword == "const" else list_of(value))
            case "$ref" | "$dynamicRef" | "$recursiveRef":
                return self._referred(schema, keyword, replace(place, is_part=is_parted))
            case "allOf" | "anyOf" | "oneOf":
                return self._combined(keyword, schema, place, is_parted=is_parted)
            case "uniqueItems" if schema[keyword] and count(schema.get("maxItems", 2)) > 1:
                raise MalformedError("a grammar cannot compare items")
            case "contains":
                return self._contains(schema, place)
        if keyword in CONDITIONAL and not place.is_wide:
            return self._negation.conditional(keyword, schema, place)
        return ANY

    def _combined(
        self, keyword: str, schema: dict[str, Any], place: Place, *, is_parted: bool
    ) -> Node:
        """Return the values that all, or any, of several schemas allow."""
        branches = list_of(schema[keyword])
        locations = [place.at(keyword, i, is_part=is_parted) for i in range(len(branches))]
        nodes = [self.node(b, p) for b, p in zip(branches, locations, strict=True)]
        if keyword == "allOf":
            return reduce(self.intersections.intersect, nodes, ANY)
        tag = None if place.is_wide else tags.tag_of(schema, branches, self.references)
        if tag is not None:
            nodes = [self.intersections.intersect(node, (Object({}, (tag,)),)) for node in nodes]
        if keyword == "oneOf" and place.path in self._exclusive and not place.is_wide:
            nodes = self._exclude_others(branches, locations, nodes)
            self._excluded.append((place, nodes))
        elif keyword == "oneOf" and not place.is_wide:
            pairs = zip(branches, locations, strict=True)
            others = [self.node(b, replace(p, is_wide=True)) for b, p in pairs]
            self._choices.append((place, nodes, others))
        if any(node is ANY for node in nodes):
            return ANY
        return tuple(part for node in nodes for part in node)

    def _exclude_others(
        self, branches: list[Any], locations: list[Place], nodes: list[Node]
    ) -> list[Node]:
        """Return the nodes of branches without the values of all other branches.

        Raises:
            MalformedError: A branch cannot be negated.
        """
        negated = [self._negation.of(b, p) for b, p in zip(branches, locations, strict=True)]
        return [
            reduce(self.intersections.intersect, [*negated[:index], *negated[index + 1 :]], node)
            for index, node in enumerate(nodes)
        ]

    def _is_empty(self, node: Node) -> bool:
        """Whether a node has no values, or only objects with a property that has none."""
        return all(
            isinstance(part, Object)
            and any(self.intersections.property_of(part, name) == NEVER for name in part.required)
            for part in self._without_references(node)
        )

    def _check_choice(self, place: Place, nodes: list[Node], others: list[Node]) -> None:
        for index, node in enumerate(nodes):
            for number, other in enumerate(others):
                if number != index and not self.intersections.disjoint(
                    node, other, self.dereference
                ):
                    reason = f"branches {index} and {number} may have common values"
                    self.add(place, "oneOf", reason)
                    self.overlapping.append(place.path)
                    return

    def _contains(self, schema: dict[str, Any], place: Place) -> Node:
        least = count(schema.get("minContains", 1))
        if least == 0 and "maxContains" not in schema:
            return ANY
        if self.node(schema["contains"], replace(place.at("contains"), is_wide=True)) is not ANY:
            raise MalformedError("a grammar cannot count the items that match a schema")
        most = count(schema["maxContains"]) if "maxContains" in schema else None
        return (*ANY[:-2], *array((), None, least, most), ANY[-1])

    def _evaluated(self, node: Node, schema: dict[str, Any], place: Place) -> Node:
        """Apply `unevaluatedProperties` and `unevaluatedItems` to what no keyword evaluates."""
        for keyword in ("unevaluatedProperties", "unevaluatedItems"):
            if keyword not in schema or not any(name in schema for name in IN_PLACE):
                continue
            rest = self.node(schema[keyword], place.at(keyword))
            if rest is ANY or place.is_wide:
                continue
            # A schema that does not match evaluates nothing.
            negates = _negates(schema) or bool(self._exclusive)
            is_known = keyword == "unevaluatedProperties" and not negates
            if not is_known or any(isinstance(part, Reference) for part in node):
                self.add(place, keyword, "other keywords may evaluate the same values")
                continue
            node = tuple(
                replace(part, additional=rest)
                if isinstance(part, Object) and part.additional is None
                else part
                for part in node
            )
        return node


def _is_in_parts(schema: dict[str, Any]) -> bool:
    """Whether several schemas describe an object, so that none may exclude other properties."""
    described = {"properties", "patternProperties", "required"} & schema.keys()
    combined = {"anyOf", "oneOf", "$ref", "if", "dependentSchemas"} & schema.keys()
    return "allOf" in schema or bool(described and combined)


def _negates(schema: Any) -> bool:
    """Whether parts of an object's node may come from a schema that the object must not match."""
    if not isinstance(schema, dict):
        return False
    parts = [part for key in ("allOf", "anyOf", "oneOf") for part in schema.get(key, [])]
    dependent = schema.get("dependentSchemas", {})
    negated = {"not", "if", "dependencies"} & schema.keys()
    return bool(negated) or any(map(_negates, [*parts, *dependent.values()]))
