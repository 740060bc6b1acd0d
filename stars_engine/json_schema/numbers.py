"""Regular expressions for JSON numbers between bounds.

The numbers are finite in Python: floats end at 1.8e308, and `json.loads` reads integers of at most
4,300 digits.
"""

from __future__ import annotations

import json
import math
from decimal import Decimal
from fractions import Fraction

from stars_engine.json_schema.nodes import Number

_SMALLEST, _LARGEST = Fraction(1, 10**20), Fraction(10**60)  # bounds that a grammar holds

# Numbers with this many digits before the point are finite with the exponents below.
_DIGITS = 200
_INTEGER = rf"(0|[1-9][0-9]{{0,{_DIGITS - 1}}})"
_FRACTION = r"(\.[0-9]{1,100})?"
_POSITIVE = (  # with an exponent of two digits, or one digit and an exponent up to 307
    rf"({_INTEGER}{_FRACTION}([eE][+-]?[0-9]{{1,2}})?"
    rf"|[0-9](\.[0-9]{{1,15}})?[eE]\+?([12][0-9]{{2}}|30[0-7]))"
)
_ZERO = r"0(\.0+)?([eE][+-]?[0-9]+)?"


def expression(number: Number) -> str | None:
    """Return the terminal expression for numbers without a divisor; None if there are none."""
    if number.values is not None:
        texts = [json.dumps(value) for value in number.values if holds(number, value)]
        return " | ".join(json.dumps(text) for text in dict.fromkeys(texts)) or None
    if number.integer:
        return _integers(*integer_bounds(number))
    return _reals(number)


def holds(number: Number, value: float) -> bool:
    """Return whether a value satisfies a node of numbers."""
    if isinstance(value, float) and not math.isfinite(value):
        return False
    exact = fraction(value)
    return not (
        (number.integer and exact.denominator != 1)
        or (number.low is not None and exact < number.low)
        or (number.high is not None and exact > number.high)
        or (number.above_low and exact == number.low)
        or (number.below_high and exact == number.high)
        or (number.multiple_of is not None and (exact / number.multiple_of).denominator != 1)
        or not is_divisible(number, value)
    )


def is_divisible(number: Number, value: float) -> bool:
    """Return whether validators, which divide floats, see a value as a multiple."""
    try:
        return all((value / divisor).is_integer() for divisor in number.divisors)
    except OverflowError:
        return False


def fraction(value: float) -> Fraction:
    """Return a number of a schema exactly as written: 0.1 is one tenth."""
    return Fraction(value) if isinstance(value, int) else Fraction(repr(value))


def integer_bounds(number: Number) -> tuple[int | None, int | None]:
    """Return the smallest and the largest integer, inclusive; None for no bound."""
    low = high = None
    if number.low is not None:
        low = math.ceil(number.low)
        low += number.above_low and low == number.low
    if number.high is not None:
        high = math.floor(number.high)
        high -= number.below_high and high == number.high
    return low, high


def _integers(low: int | None, high: int | None) -> str | None:
    if low is not None and high is not None and low > high:
        return None
    parts = []
    if high is None or high >= 0:
        parts.append(_natural(max(low or 0, 0), high))
    if low is None or low < 0:
        least = 1 if high is None else max(1, -high)
        parts.append("-" + _natural(least, None if low is None else -low))
    return f"/{'|'.join(parts)}/"


def _natural(low: int, high: int | None) -> str:
    """Return an expression for non-negative integers from `low` on, with a finite length."""
    if high is None:
        digits = len(str(low))
        if low <= 1:
            return rf"({_INTEGER if low == 0 else rf'[1-9][0-9]{{0,{_DIGITS - 1}}}'})"
        same = _natural(low, 10**digits - 1)
        return rf"({same}|[1-9][0-9]{{{digits},{max(digits, _DIGITS)}}})"
    parts = []
    for digits in range(len(str(low)), len(str(high)) + 1):
        least = max(low, 10 ** (digits - 1) if digits > 1 else 0)
        parts += _same_length(str(least), str(min(high, 10**digits - 1)))
    return f"({'|'.join(parts)})"


def _same_length(low: str, high: str) -> list[str]:
    """Return expressions for digits between two strings of the same length, inclusive."""
    if low == high:
        return [low]
    if not low.strip("0") and not high.strip("9"):
        return [f"[0-9]{{{len(low)}}}"]
    if low[0] == high[0]:
        return [low[0] + f"({'|'.join(_same_length(low[1:], high[1:]))})"]
    rest = len(low) - 1
    if not rest:
        return [f"[{low}-{high}]"]
    first, last, parts = int(low[0]), int(high[0]), []
    if low[1:].strip("0"):
        parts += [low[0] + f"({'|'.join(_same_length(low[1:], '9' * rest))})"]
        first += 1
    if high[1:].strip("9"):
        parts += [high[0] + f"({'|'.join(_same_length('0' * rest, high[1:]))})"]
        last -= 1
    if first <= last:
        parts.append(f"[{first}-{last}][0-9]{{{rest}}}")
    return parts


# --- numbers with a fraction ---


def _reals(number: Number) -> str | None:
    low, high = number.low, number.high
    if low is None and high is None:
        return f"/-?{_POSITIVE}/"
    if low is not None and high is not None:
        excluded = number.above_low or number.below_high
        if low > high or (low == high and excluded):
            return None
    parts = []
    for sign, least, most, above, below in (
        ("", low, high, number.above_low, number.below_high),
        ("-", _negative(high), _negative(low), number.below_high, number.above_low),
    ):
        if most is not None and (most < 0 or (most == 0 and (below or sign))):
            continue
        part = _magnitudes(least, most, above=above, below=below)
        if part is not None:
            parts.append(f'"{sign}" {part}' if sign else part)
    return " | ".join(parts) or None


class UnwritableBoundError(ValueError):
    """A bound of a number would take too many digits to write as a grammar."""


def _negative(value: Fraction | None) -> Fraction | None:
    return None if value is None else -value


def _magnitudes(
    low: Fraction | None, high: Fraction | None, *, above: bool, below: bool
) -> str | None:
    """Return an expression for non-negative decimals; with exponents if unbounded.

    Raises:
        UnwritableBoundError: A bound is too close to zero, or too far from it.
    """
    is_tiny = any(bound is not None and 0 < bound < _SMALLEST for bound in (low, high))
    if is_tiny or (low is not None and low > _LARGEST):
        raise UnwritableBoundError(
            "`minimum` or `maximum`: a grammar can start a range of numbers at 0, or at a distance "
            f"of {float(_SMALLEST):g} to {float(_LARGEST):g} from it"
        )
    if high is None and (low is None or low < 0 or (low == 0 and not above)):
        return f"/{_POSITIVE}/"
    if high is None and low == 0:
        return f"(/{_POSITIVE}/ & ~/{_ZERO}/)"
    # Move an excluded bound inwards until no written number rounds to it as a float.
    if low is None or low < 0:
        low, above = Fraction(0), False
    least = _rounded(low, up=True, strictly=above)
    form = rf"/(0|[1-9][0-9]{{0,307}}){_FRACTION}/"
    parts = [form, _at_least(least)] if least > 0 else [form]
    if high is not None:
        most = _rounded(high, up=False, strictly=below)
        if most < least:
            return None
        parts.append(_at_most(most))
    return "(" + " & ".join(f"({part})" for part in parts) + ")"


def _rounded(value: Fraction, *, up: bool, strictly: bool) -> Decimal:
    """Return a decimal near a bound, on the inner side."""
    exact = _decimal(value)
    if exact is not None and not strictly:
        return exact
    if value == 0:
        return Decimal(1).scaleb(-30)
    step = Decimal(1).scaleb(Decimal(value.numerator / value.denominator).adjusted() - 16)
    scaled = value / Fraction(step)
    count = math.ceil(scaled) if up else math.floor(scaled)
    bound = float(value)
    while True:
        found = count * step
        is_inside = float(found) > bound if up else float(found) < bound
        if is_inside or (not strictly and Fraction(found) == value):
            return found
        count += 1 if up else -1


def _decimal(value: Fraction) -> Decimal | None:
    """Return a fraction as a decimal; None if its expansion is infinite."""
    power = value.denominator
    twos = fives = 0
    while power % 2 == 0:
        power, twos = power // 2, twos + 1
    while power % 5 == 0:
        power, fives = power // 5, fives + 1
    if power != 1:
        return None
    decimals = max(twos, fives)
    digits = abs(value.numerator) * 10**decimals // value.denominator
    return Decimal((int(value < 0), tuple(map(int, str(digits))), -decimals))


def _parts(value: Decimal) -> tuple[str, str]:
    whole, _, after = format(value, "f").partition(".")
    return whole, after.rstrip("0")


def _at_most(value: Decimal) -> str:
    whole, after = _parts(value)
    any_fraction = r"(\.[0-9]+)?"
    parts = [rf"{whole}(\.{_digits_up_to(after)})?"]
    if int(whole) > 0:
        parts.append(f"{_natural(0, int(whole) - 1)}{any_fraction}")
    return f"/{'|'.join(parts)}/"


def _digits_up_to(after: str) -> str:
    """Return an expression for decimal digits up to some value."""
    parts = [after + "0*"] if after else ["0+"]
    for place, digit in enumerate(after):
        parts.append(after[:place] if place else "")
        if digit > "0":
            parts.append(f"{after[:place]}[0-{int(digit) - 1}][0-9]*")
    return f"({'|'.join(part for part in parts if part)})"


def _at_least(value: Decimal) -> str:
    whole, after = _parts(value)
    parts = [rf"{_natural(int(whole) + 1, None)}(\.[0-9]+)?"]
    if not after:
        parts.append(rf"{whole}(\.[0-9]+)?")
    else:
        inner = [after + "[0-9]*"]
        for place, digit in enumerate(after):
            if digit < "9":
                inner.append(f"{after[:place]}[{int(digit) + 1}-9][0-9]*")
        parts.append(rf"{whole}\.({'|'.join(inner)})")
    return f"/{'|'.join(parts)}/"
