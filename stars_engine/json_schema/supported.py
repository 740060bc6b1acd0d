"""The supported part of a schema, which a grammar can express, and where the rest is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from stars_engine.json_schema.intersections import Intersections
from stars_engine.json_schema.nodes import Node, Reference
from stars_engine.json_schema.references import References


@dataclass(frozen=True)
class Unsupported:
    """A requirement of a schema that a grammar cannot express.

    Attributes:
        path: The location, as a JSON pointer from the root: "#/properties/tags".
        keyword: The keyword.
        reason: Why it cannot be expressed.
    """

    path: str
    keyword: str
    reason: str

    def __str__(self) -> str:
        return f"`{self.keyword}` at {self.path}: {self.reason}"


@dataclass(frozen=True)
class SupportedSchema:
    """The part of a schema that a grammar expresses.

    Attributes:
        root: The allowed values; with entries in `unsupported`, more than the schema allows.
        unsupported: Requirements of the schema that `root` ignores.
        emptied: Descriptions of keywords that exclude all values, with their locations.
        dereference: Replaces a reference by alternatives without references.
        intersections: Intersections of these nodes.
    """

    root: Node
    unsupported: tuple[Unsupported, ...]
    emptied: tuple[str, ...]
    dereference: Callable[[Reference], Node]
    intersections: Intersections


@dataclass(frozen=True)
class Place:
    """The location of a schema.

    Attributes:
        path: A JSON pointer from the root.
        is_part: Whether it describes the same object as its surrounding schema.
        is_wide: Whether an approximation must include all values of the schema; otherwise it must
            include no others.
    """

    path: str
    is_part: bool = False
    is_wide: bool = False

    def at(self, *keys: object, is_part: bool = False) -> Place:
        """Return a location inside this one."""
        steps = "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in keys)
        return Place(self.path + steps, is_part, self.is_wide)


class NodeReader(Protocol):
    """Reads the schemas within a schema; `SchemaReader` implements it.

    Attributes:
        intersections: Intersections of nodes.
        references: The targets of references.
    """

    intersections: Intersections
    references: References

    def node(self, schema: Any, place: Place) -> Node:
        """Return the values that a schema allows."""

    def add(self, place: Place, keyword: str, reason: str) -> None:
        """Note a requirement that a grammar cannot express."""

    def noting(self, place: Place, keyword: str) -> AbstractContextManager[None]:
        """Note a keyword that cannot be expressed if reading it raises."""
