"""Numbers and strings of a schema's keywords, read as nodes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from stars_engine.json_schema.formats import pattern_of
from stars_engine.json_schema.nodes import Number, String
from stars_engine.json_schema.numbers import fraction
from stars_engine.json_schema.patterns import Pattern


class MalformedError(ValueError):
    """A keyword's value is not one that JSON Schema allows."""


def count(value: Any) -> int:
    """Return a length or a number of things.

    Raises:
        MalformedError: It is none.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value == int(value) >= 0:
        return int(value)
    raise MalformedError(f"{value!r} is no count")


def number_of(value: Any) -> Fraction:
    """Return a number exactly as it is written.

    Raises:
        MalformedError: It is none.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return fraction(value)
    raise MalformedError(f"{value!r} is no number")


def number(keyword: str, value: Any, schema: Mapping[str, Any]) -> Number:
    """Return the numbers that one keyword allows.

    Raises:
        MalformedError: Its value is not one that JSON Schema allows.
    """
    if isinstance(value, bool) and keyword.startswith("exclusive"):  # as draft 4 has it
        bound = "minimum" if keyword == "exclusiveMinimum" else "maximum"
        return number(keyword, schema[bound], schema) if value and bound in schema else Number()
    amount = number_of(value)
    match keyword:
        case "minimum":
            return Number(low=amount)
        case "maximum":
            return Number(high=amount)
        case "exclusiveMinimum":
            return Number(low=amount, above_low=True)
        case "exclusiveMaximum":
            return Number(high=amount, below_high=True)
    if amount <= 0:
        raise MalformedError(f"{value!r} is not above 0")
    return Number(multiple_of=amount)


def string(keyword: str, value: Any, *, with_formats: bool) -> String:
    """Return the strings that one keyword allows.

    Raises:
        MalformedError: Its value is not one that JSON Schema allows.
        UnheldPatternError: A regular expression that no grammar holds.
    """
    if keyword == "minLength":
        return String(min_length=count(value))
    if keyword == "maxLength":
        return String(max_length=count(value))
    if not isinstance(value, str):
        raise MalformedError(f"{value!r} is no string")
    source = value if keyword == "pattern" else pattern_of(value) if with_formats else None
    return String() if source is None else String(patterns=(Pattern(source),))


def list_of(value: Any) -> list[Any]:
    """Return a list.

    Raises:
        MalformedError: It is none.
    """
    if not isinstance(value, list):
        raise MalformedError(f"{value!r} is no list")
    return value


def mapping_of(value: Any) -> dict[str, Any]:
    """Return a mapping.

    Raises:
        MalformedError: It is none.
    """
    if not isinstance(value, dict):
        raise MalformedError(f"{value!r} is no mapping")
    return value
