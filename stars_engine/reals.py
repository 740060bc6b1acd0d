"""Numbers that other people's code returns."""

from __future__ import annotations

from numbers import Real
from typing import Any


def real_number(value: Any, meaning: str) -> float:
    """Return a real number as a float: of Python, or one element of an array or tensor.

    `float` also reads texts and the bytes of buffers, and would make 10.0 of `' 1_0 '`.

    Args:
        value: What was returned.
        meaning: What it should be, for the message, as in "a reward".

    Raises:
        ValueError: It is a text or bytes, whatever they say.
        TypeError: It is something else, or a number that no float can hold.
    """
    if isinstance(value, str | bytes | bytearray):
        raise ValueError(f"{meaning} is a number, not {value[:60]!r}")  # noqa: TRY004 - as `float`
    number = value
    if not isinstance(number, Real):
        number = _only_element(number)
    if not isinstance(number, Real) and not _can_be_float(number):
        shown = "None" if value is None else type(value).__name__
        raise TypeError(f"{meaning} is a number, not {shown}")
    try:
        return float(number)
    except (TypeError, ValueError, OverflowError) as error:
        problem = f"{type(value).__name__} ({error})"
        raise TypeError(f"{meaning} is a number, not {problem}") from None


def _only_element(value: Any) -> Any:
    """Return the element of an array or tensor that has one; anything else as it is."""
    item = getattr(value, "item", None)
    if not callable(item) or isinstance(value, type):
        return value
    try:
        return item()
    except Exception:  # noqa: BLE001 - it has several, or is something else
        return None


def _can_be_float(value: Any) -> bool:
    """Whether an object says of itself that it is a number, as `Decimal` does."""
    return not isinstance(value, str | bytes | bytearray) and (
        hasattr(type(value), "__float__") or hasattr(type(value), "__index__")
    )
