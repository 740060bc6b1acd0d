"""Read the values of keywords for numbers and strings as nodes."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from stars_engine.json_schema.formats import pattern_of
from stars_engine.json_schema.keywords import DECIMAL_PLACES
from stars_engine.json_schema.nodes import Number, String
from stars_engine.json_schema.numbers import fraction
from stars_engine.json_schema.patterns import Pattern

_MOST = 10**9  # items or properties; generated schemas have limits like 2**53 - 1


class MalformedError(ValueError):
    """The value of a keyword is invalid in JSON Schema, or not supported."""


def count(value: Any) -> int:
    """Return a length or a count.

    Raises:
        MalformedError: The value is not a non-negative integer.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value == int(value) >= 0:
        return int(value)
    raise MalformedError(f"{value!r} is not a non-negative integer")


def least_of(value: Any) -> int:
    """Return a least count.

    Raises:
        MalformedError: The value is not a non-negative integer, or beyond every answer.
    """
    found = count(value)
    if found > _MOST:
        raise MalformedError(f"an integer of {found.bit_length()} bits is above {_MOST}")
    return found


def most_of(value: Any) -> int | None:
    """Return a largest count; None if no answer exceeds it.

    Raises:
        MalformedError: The value is not a non-negative integer.
    """
    found = count(value)
    return None if found > _MOST else found


def number_of(value: Any) -> Fraction:
    """Return a number exactly as written.

    Raises:
        MalformedError: The value is not a number, or an integer beyond all floats.
    """
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        raise MalformedError(f"an integer of {value.bit_length()} bits is beyond all floats")
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return fraction(value)
    raise MalformedError(f"{value!r} is not a number")


def number(keyword: str, value: Any, schema: Mapping[str, Any]) -> Number:
    """Return the numbers that a keyword allows.

    Raises:
        MalformedError: The value of the keyword is invalid.
    """
    if isinstance(value, bool) and keyword.startswith("exclusive"):  # the form of draft 4
        bound = "minimum" if keyword == "exclusiveMinimum" else "maximum"
        return number(keyword, schema[bound], schema) if value and bound in schema else Number()
    if keyword == DECIMAL_PLACES:
        return Number(multiple_of=Fraction(1, 10 ** count(value)))
    amount = number_of(value)
    bounds = {
        "minimum": Number(low=amount),
        "maximum": Number(high=amount),
        "exclusiveMinimum": Number(low=amount, above_low=True),
        "exclusiveMaximum": Number(high=amount, below_high=True),
    }
    if keyword in bounds:
        return bounds[keyword]
    if amount <= 0:
        raise MalformedError(f"{value!r} is not above 0")
    return Number(multiple_of=amount, divisors=(value,) if isinstance(value, float) else ())


def string(keyword: str, value: Any, *, with_formats: bool) -> String:
    """Return the strings that a keyword allows.

    Raises:
        MalformedError: The value of the keyword is invalid.
        UnsupportedPatternError: A grammar cannot express the regular expression.
    """
    if keyword == "minLength":
        return String(min_length=count(value))
    if keyword == "maxLength":
        return String(max_length=count(value))
    if not isinstance(value, str):
        raise MalformedError(f"{value!r} is not a string")
    source = value if keyword == "pattern" else pattern_of(value) if with_formats else None
    return String() if source is None else String(patterns=(Pattern(source),))


def list_of(value: Any) -> list[Any]:
    """Return a value if it is a list.

    Raises:
        MalformedError: The value is not a list.
    """
    if not isinstance(value, list):
        raise MalformedError(f"{value!r} is not a list")
    return value


def mapping_of(value: Any) -> dict[str, Any]:
    """Return a value if it is a mapping.

    Raises:
        MalformedError: The value is not a mapping.
    """
    if not isinstance(value, dict):
        raise MalformedError(f"{value!r} is not a mapping")
    return value
