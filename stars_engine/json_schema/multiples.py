"""Multiples of a number, as terminals and rules of a grammar.

Validators divide floats: for them, 0.3 is not a multiple of 0.1, because `0.3 / 0.1` is
2.9999999999999996. A grammar writes only multiples that pass that test. Where a decimal divisor
is rounded so little that no division goes wrong, these include all multiples that are exact as
floats; the others are listed near zero.
"""

from __future__ import annotations

import json
from dataclasses import astuple, dataclass
from fractions import Fraction
from functools import lru_cache
from math import ceil, floor
from typing import Any

from stars_engine.json_schema import numbers
from stars_engine.json_schema.intersections import TooComplexError
from stars_engine.json_schema.nodes import Number

# A state for each remainder; few multiples are written one by one.
_MAX_COEFFICIENT = 10_000
_MAX_LISTED = 20_000
_LARGEST = Fraction(10**15)
_EXACT = 2**53  # floats have this many integers
# Below this relative error of a divisor, the quotient of two exact floats rounds to the integer.
_SAFE_ERROR = Fraction(1, 2**54)


@dataclass(frozen=True)
class Multiples:
    """The parts of a grammar rule for multiples.

    Attributes:
        listed: The terminal for multiples that are written one by one; None if there are none.
        rule: The rule for all others; None if there are none.
    """

    listed: str | None
    rule: str | None = None


def multiples(number: Number) -> Multiples:
    """Return what stands in a rule for the multiples of a node.

    Raises:
        TooComplexError: The divisor has too many digits, or is not exact enough as a float.
    """
    return _multiples(astuple(number))


@lru_cache(maxsize=64)  # thousands may be tried one by one
def _multiples(fields: tuple[Any, ...]) -> Multiples:
    number = Number(*fields)
    divisor = number.multiple_of
    assert divisor is not None
    if number.integer:
        divisor = Fraction(divisor.numerator)
    twos, fives = _powers(divisor)
    least, most = _range(number, divisor)
    if most - least < _MAX_LISTED:
        return Multiples(_listed(number, divisor, least, most))
    listed = None
    if number.divisors and not all(map(_is_safe, number.divisors)):
        unsafe = next(d for d in number.divisors if not _is_safe(d))
        raise TooComplexError(
            f"`multipleOf`: validators divide floats, and few multiples of {unsafe!r} are "
            f"exact; add bounds with at most {_MAX_LISTED:,} multiples between them"
        )
    if number.divisors and fives:
        start = max(least, min(-_MAX_LISTED // 2, most - _MAX_LISTED))
        listed = _listed(number, divisor, start, min(most, start + _MAX_LISTED))
        divisor *= 5**fives
        fives = 0
        least, most = _range(number, divisor, Fraction(_EXACT, 2**twos))
    if divisor * 10 ** max(twos, fives) > _MAX_COEFFICIENT:
        raise TooComplexError(f"`multipleOf`: {float(divisor)!r} has too many digits")
    # With their sign before them: not all versions of the library know negative multiples.
    parts = []
    if most >= 0:
        parts.append(_natural(divisor, max(least, 0), most, integer=number.integer))
    if least < 0:
        magnitudes = _natural(divisor, max(-most, 1), -least, integer=number.integer)
        parts.append(f'"-" {magnitudes}')
    return Multiples(listed, " | ".join(parts))


def _powers(divisor: Fraction) -> tuple[int, int]:
    """Return how often 2 and 5 divide the denominator of a decimal."""
    powers = []
    rest = divisor.denominator
    for prime in (2, 5):
        power = 0
        while rest % prime == 0:
            rest, power = rest // prime, power + 1
        powers.append(power)
    if rest != 1 or max(powers) > 12:
        raise TooComplexError(f"`multipleOf`: {float(divisor)!r} has too many digits")
    return powers[0], powers[1]


def _range(number: Number, divisor: Fraction, largest: Fraction = _LARGEST) -> tuple[int, int]:
    """Return the smallest and the largest count of divisors within the bounds of a node."""
    largest = min(largest, _LARGEST)
    low = -largest if number.low is None else max(number.low, -largest)
    high = largest if number.high is None else min(number.high, largest)
    least, most = ceil(low / divisor), floor(high / divisor)
    least += number.above_low and least * divisor == number.low
    most -= number.below_high and most * divisor == number.high
    return least, most


def _listed(number: Number, divisor: Fraction, least: int, most: int) -> str | None:
    """Return a terminal for those multiples in a range that validators accept."""
    values = (_plain(count * divisor) for count in range(least, most + 1))
    held = [f'"{json.dumps(value)}"' for value in values if numbers.is_divisible(number, value)]
    return " | ".join(held) or None


def _is_safe(divisor: float) -> bool:
    exact = numbers.fraction(divisor)
    return abs(Fraction(divisor) - exact) <= exact * _SAFE_ERROR


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
