"""Alternatives of a node in the form in which they are written."""

from __future__ import annotations

from dataclasses import dataclass

from stars_engine.json_schema.intersections import TooComplexError
from stars_engine.json_schema.nodes import Array, Node, Object
from stars_engine.json_schema.objects import Field


@dataclass
class Form:
    """An alternative of a node in a form that can be written.

    Attributes:
        leaf: The name of a terminal or the source of a rule; None for arrays and objects.
        array: The array.
        obj: The object.
        fields: Named properties of the object.
        others: Other properties of the object.
    """

    leaf: str | None = None
    array: Array | None = None
    obj: Object | None = None
    fields: tuple[Field, ...] = ()
    others: tuple[tuple[str, Node], ...] = ()


def children(form: Form) -> list[tuple[str, Node]]:
    """Return the nodes directly inside a value, each with its step in a path."""
    if form.array is not None:
        steps = [(str(index), node) for index, node in enumerate(form.array.prefix)]
        return [*steps, ("items", form.array.items or ())]
    return [(f.name, f.node) for f in form.fields] + [("*", node) for _, node in form.others]


def located(error: ValueError, path: str) -> TooComplexError:
    """Return an error that names the place of a value."""
    keyword, mark, reason = str(error).partition("`: ")
    return TooComplexError(f"{keyword}` at {path}: {reason}" if mark else f"{error} at {path}")
