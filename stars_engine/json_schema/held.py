"""What a grammar holds of a schema, what it cannot hold, and where that stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stars_engine.json_schema.meets import Meets
from stars_engine.json_schema.nodes import Node, Reference


@dataclass(frozen=True)
class Unheld:
    """Something that a schema asks for and a grammar cannot hold.

    Attributes:
        path: Where it stands, as a JSON pointer from the root: "#/properties/tags".
        keyword: The keyword.
        reason: What about it cannot be held.
    """

    path: str
    keyword: str
    reason: str

    def __str__(self) -> str:
        return f"`{self.keyword}` at {self.path}: {self.reason}"


@dataclass(frozen=True)
class HeldSchema:
    """What a grammar holds of a schema.

    Attributes:
        root: The values that are allowed; more than the schema allows where `unheld` says so.
        unheld: What the schema asks for and `root` leaves out.
        emptied: Which keywords left nothing, and where, in words.
        resolve: Leads from references in nodes to alternatives without references.
        meets: Intersections of these nodes.
    """

    root: Node
    unheld: tuple[Unheld, ...]
    emptied: tuple[str, ...]
    resolve: Callable[[Reference], Node]
    meets: Meets


@dataclass(frozen=True)
class Place:
    """Where a schema stands.

    Attributes:
        path: A JSON pointer from the root.
        is_part: Whether it describes the same object as what is around it.
        is_wide: Whether more values may be read than the schema has, and never fewer; otherwise
            fewer, and never more.
    """

    path: str
    is_part: bool = False
    is_wide: bool = False

    def at(self, *keys: object, is_part: bool = False) -> Place:
        """Return a place within."""
        steps = "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in keys)
        return Place(self.path + steps, is_part, self.is_wide)
