"""Intersections of nodes, and whether two nodes are disjoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from math import lcm

from stars_engine.json_schema import numbers
from stars_engine.json_schema.nodes import (
    ANY,
    NEVER,
    Alternative,
    Array,
    Bool,
    Node,
    Null,
    Number,
    Object,
    Reference,
    String,
)
from stars_engine.json_schema.patterns import Pattern

MAX_ALTERNATIVES = 2_000


class TooComplexError(ValueError):
    """A schema is too complex for a grammar."""


class Intersections:
    """Intersections of nodes.

    Args:
        name_of: Returns a name for a node, to which references can refer.
    """

    def __init__(self, name_of: Callable[[Node], str]) -> None:
        self._name_of = name_of

    def intersect(self, first: Node, second: Node) -> Node:
        """Return the values in both nodes, with properties in the order of the first.

        Raises:
            TooComplexError: There are too many alternatives.
        """
        if first is ANY or first is second:
            return second
        if second is ANY:
            return first
        if len(first) * len(second) > 4 * MAX_ALTERNATIVES:
            raise TooComplexError(f"more than {MAX_ALTERNATIVES} alternatives")
        found: list[Alternative] = []
        for one in first:
            for other in second:
                found += self._intersect(one, other)
        if len(found) > MAX_ALTERNATIVES:
            raise TooComplexError(f"more than {MAX_ALTERNATIVES} alternatives")
        return tuple(found)

    def _intersect(self, one: Alternative, other: Alternative) -> Node:
        node: Node
        match one, other:
            case (Reference(), _) | (_, Reference()):
                names = [*self._names(one), *self._names(other)]
                node = (Reference(tuple(dict.fromkeys(names))),)
            case Null(), Null():
                node = (one,)
            case Bool(ours), Bool(theirs):
                node = (Bool(ours & theirs),) if ours & theirs else NEVER
            case Number(), Number():
                node = intersect_numbers(one, other)
            case String(), String():
                node = intersect_strings(one, other)
            case Array(), Array():
                node = self._arrays(one, other)
            case Object(), Object():
                node = (self._objects(one, other),)
            case _:
                node = NEVER
        return node

    def _names(self, alternative: Alternative) -> tuple[str, ...]:
        if isinstance(alternative, Reference):
            return alternative.names
        return (self._name_of((alternative,)),)

    def _arrays(self, one: Array, other: Array) -> Node:
        longest = max(len(one.prefix), len(other.prefix))
        prefix = tuple(self.intersect(item_of(one, i), item_of(other, i)) for i in range(longest))
        items = self._both(one.items, other.items)
        bounds = [most for most in (one.max_items, other.max_items) if most is not None]
        least, most = max(one.min_items, other.min_items), min(bounds, default=None)
        return array(prefix, items, least, most)

    def _objects(self, one: Object, other: Object) -> Object:
        properties = {
            name: self.intersect(self.property_of(one, name), self.property_of(other, name))
            for name in [*one.properties, *other.properties]
        }
        bounds = [m for m in (one.max_properties, other.max_properties) if m is not None]
        return Object(
            properties,
            tuple(dict.fromkeys([*one.required, *other.required])),
            self._patterns(one, other),
            self._both(one.additional, other.additional),
            self._both(one.names, other.names),
            max(one.min_properties, other.min_properties),
            min(bounds, default=None),
            one.is_open and other.is_open,
        )

    def _both(self, one: Node | None, other: Node | None) -> Node | None:
        """Return the intersection of two optional nodes; None means no constraint."""
        if one is None or other is None:
            return other if one is None else one
        return self.intersect(one, other)

    def _patterns(self, one: Object, other: Object) -> tuple[tuple[Pattern, Node], ...]:
        found = {}
        for own, its in ((one, other), (other, one)):
            for pattern, node in own.patterns:
                if pattern in found:
                    continue
                same = [inner for theirs, inner in its.patterns if theirs == pattern]
                if not same and its.additional is not None:
                    if its.patterns:  # they may match the same names
                        raise TooComplexError("`patternProperties`: given in several schemas")
                    same = [its.additional]
                found[pattern] = self.intersect(node, same[0]) if same else node
        return tuple(found.items())

    def property_of(self, obj: Object, name: str) -> Node:
        """Return the node of a property's value, from all parts of an object node."""
        if name in obj.properties:
            return obj.properties[name]
        node = ANY
        for pattern, inner in obj.patterns:
            if pattern.may_match(name):
                node = self.intersect(node, inner)
        if not any(pattern.matches(name) for pattern, _ in obj.patterns):
            node = self.intersect(node, rest_of(obj))
        return node

    # --- whether two nodes have values in common ---

    def disjoint(
        self, first: Node, second: Node, dereference: Callable[[Reference], Node], depth: int = 0
    ) -> bool:
        """Return whether two nodes certainly have no common value."""
        if depth > 8:
            return False

        def alternatives(node: Node) -> list[Alternative]:
            found: list[Alternative] = []
            for part in node:
                found += dereference(part) if isinstance(part, Reference) else (part,)
            return found

        return all(
            self._disjoint(one, other, dereference, depth)
            for one in alternatives(first)
            for other in alternatives(second)
        )

    def _disjoint(
        self,
        one: Alternative,
        other: Alternative,
        dereference: Callable[[Reference], Node],
        depth: int,
    ) -> bool:
        if isinstance(one, Reference) or isinstance(other, Reference):
            return False
        if type(one) is not type(other):
            return True
        if isinstance(one, Array) and isinstance(other, Array):
            bounds = [m for m in (one.max_items, other.max_items) if m is not None]
            common = max(one.min_items, other.min_items)
            if common > min(bounds, default=common):
                return True
            return any(
                self.disjoint(item_of(one, i), item_of(other, i), dereference, depth + 1)
                for i in range(min(common, 16))
            )
        if isinstance(one, Object) and isinstance(other, Object):
            return any(
                self.disjoint(
                    self.property_of(one, name),
                    self.property_of(other, name),
                    dereference,
                    depth + 1,
                )
                for name in (*one.required, *other.required)
            )
        return not self._intersect(one, other)


def array(prefix: tuple[Node, ...], items: Node | None, least: int, most: int | None) -> Node:
    """Return a node of arrays whose length is limited to items that can exist."""
    for index, node in enumerate(prefix):
        if node == NEVER:
            prefix, most = prefix[:index], min(index, index if most is None else most)
            break
    if items == NEVER:
        most = min(len(prefix), len(prefix) if most is None else most)
    if most is not None and least > most:
        return NEVER
    return (Array(prefix, items, least, most),)


def item_of(arr: Array, index: int) -> Node:
    """Return the node of the item at an index."""
    if index < len(arr.prefix):
        return arr.prefix[index]
    return ANY if arr.items is None else arr.items


def rest_of(obj: Object) -> Node:
    """Return the node of properties that match no name and no pattern."""
    if obj.additional is not None:
        return obj.additional
    return ANY if obj.is_open else NEVER


def intersect_numbers(one: Number, other: Number) -> Node:
    """Return the numbers in both nodes."""
    low, above = _tighter(one.low, one.above_low, other.low, other.above_low, sign=1)
    high, below = _tighter(one.high, one.below_high, other.high, other.below_high, sign=-1)
    divisors = [d for d in (one.multiple_of, other.multiple_of) if d is not None]
    divisor = divisors[0] if divisors else None
    if len(divisors) == 2:
        a, b = divisors
        common = lcm(a.denominator, b.denominator)
        divisor = Fraction(lcm(int(a * common), int(b * common)), common)
    floats = tuple(dict.fromkeys((*one.divisors, *other.divisors)))
    bounds = Number(one.integer or other.integer, low, high, above, below, divisor, floats)
    lists = [set(number.values) for number in (one, other) if number.values is not None]
    if lists:
        source = one.values if one.values is not None else other.values
        assert source is not None
        kept = [v for v in source if all(v in values for values in lists)]
        kept = [v for v in kept if numbers.holds(bounds, v)]
        if bounds.integer:
            kept = [int(v) for v in kept]
        return (replace(bounds, values=tuple(kept)),) if kept else NEVER
    if bounds.integer:
        least, most = numbers.integer_bounds(bounds)
        is_empty = least is not None and most is not None and least > most
    else:
        is_empty = (
            low is not None
            and high is not None
            and (low > high or (low == high and (above or below)))
        )
    return NEVER if is_empty else (bounds,)


def _tighter(
    one: Fraction | None,
    one_excludes: bool,
    other: Fraction | None,
    other_excludes: bool,
    *,
    sign: int,
) -> tuple[Fraction | None, bool]:
    if one is None or (other is not None and sign * other > sign * one):
        return other, other_excludes
    if other is None or one != other:
        return one, one_excludes
    return one, one_excludes or other_excludes


def intersect_strings(one: String, other: String) -> Node:
    """Return the strings in both nodes."""
    bounds = [most for most in (one.max_length, other.max_length) if most is not None]
    both = String(
        max(one.min_length, other.min_length),
        min(bounds, default=None),
        tuple(dict.fromkeys((*one.patterns, *other.patterns))),
        tuple(dict.fromkeys((*one.avoided, *other.avoided))),
    )
    if one.values is None and other.values is None:
        is_empty = both.max_length is not None and both.min_length > both.max_length
        return NEVER if is_empty else (both,)
    source = one.values if one.values is not None else other.values
    assert source is not None
    second = set(other.values) if other.values is not None else set(source)
    kept = tuple(value for value in source if value in second and string_holds(both, value))
    return (String(values=kept),) if kept else NEVER


def string_holds(string: String, value: str) -> bool:
    """Return whether a string satisfies a node, apart from its list of values."""
    return (
        string.min_length <= len(value)
        and (string.max_length is None or len(value) <= string.max_length)
        and all(pattern.matches(value) for pattern in string.patterns)
        and not any(pattern.may_match(value) for pattern in string.avoided)
    )
