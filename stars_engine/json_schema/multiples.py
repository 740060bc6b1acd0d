"""Multiples of a number, as a rule of a grammar."""

from __future__ import annotations

import json
from fractions import Fraction
from math import ceil, floor

from stars_engine.json_schema.meets import TooComplexError
from stars_engine.json_schema.nodes import Number

# A state for each remainder; few multiples are written one by one.
_MAX_COEFFICIENT = 10_000
_MAX_LISTED = 2_000


def multiples(number: Number) -> str | None:
    """Return what stands in a rule for multiples; None if there are none.

    Raises:
        TooComplexError: The divisor has too many digits.
    """
    divisor = number.multiple_of
    assert divisor is not None
    if number.integer:
        divisor = Fraction(divisor.numerator)
    exponent = 0
    while (divisor * 10**exponent).denominator != 1:
        exponent += 1
        if exponent > 12:
            raise TooComplexError(f"`multipleOf`: {float(divisor)!r} has too many digits")
    largest = Fraction(10**15)
    low = -largest if number.low is None else max(number.low, -largest)
    high = largest if number.high is None else min(number.high, largest)
    least, most = ceil(low / divisor), floor(high / divisor)
    least += number.above_low and least * divisor == number.low
    most -= number.below_high and most * divisor == number.high
    if least > most:
        return None
    if most - least < _MAX_LISTED:
        texts = [json.dumps(_plain(count * divisor)) for count in range(least, most + 1)]
        return f"({' | '.join(map(json.dumps, texts))})"
    if divisor * 10**exponent > _MAX_COEFFICIENT:
        raise TooComplexError(f"`multipleOf`: {float(divisor)!r} has too many digits")
    # With their sign before them: not all versions of the library know negative multiples.
    parts = []
    if most >= 0:
        parts.append(_natural(divisor, max(least, 0), most, integer=number.integer))
    if least < 0:
        magnitudes = _natural(divisor, max(-most, 1), -least, integer=number.integer)
        parts.append(f'"-" {magnitudes}')
    return f"({' | '.join(parts)})"


def _natural(divisor: Fraction, least: int, most: int, *, integer: bool) -> str:
    schema = {
        "type": "integer" if integer else "number",
        "multipleOf": _plain(divisor),
        "minimum": _plain(least * divisor),
        "maximum": _plain(most * divisor),
        "x-guidance": {"whitespace_flexible": False},
    }
    return f"%json {json.dumps(schema)}"


def _plain(value: Fraction) -> int | float:
    return value.numerator if value.denominator == 1 else float(value)
