"""Convert scalars that third-party code returns, such as tensors of one element, to floats."""

from __future__ import annotations

from numbers import Real
from typing import Any


def real_number(value: Any, meaning: str) -> float:
    """Return a Python number, or the only element of an array or tensor, as a float.

    `float` alone would also read strings and buffers, such as `' 1_0 '` as 10.0.

    Args:
        value: The returned value.
        meaning: The meaning of the value for messages, such as "a reward".

    Raises:
        ValueError: The value is a string or bytes.
        TypeError: The value is another object, or does not fit a float.
    """
    if isinstance(value, str | bytes | bytearray):
        raise ValueError(f"{meaning} must be a number, not {value[:60]!r}")  # noqa: TRY004 - as `float`
    number = value
    if not isinstance(number, Real):
        number = _only_element(number)
    if not isinstance(number, Real) and not _can_be_float(number):
        shown = "None" if value is None else type(value).__name__
        raise TypeError(f"{meaning} must be a number, not {shown}")
    try:
        return float(number)
    except (TypeError, ValueError, OverflowError) as error:
        problem = f"{type(value).__name__} ({error})"
        raise TypeError(f"{meaning} must be a number, not {problem}") from None


def _only_element(value: Any) -> Any:
    """Return the only element of an array or tensor; other values unchanged."""
    item = getattr(value, "item", None)
    if not callable(item) or isinstance(value, type):
        return value
    try:
        return item()
    except Exception:  # noqa: BLE001 - it has several elements, or is not an array
        return None


def _can_be_float(value: Any) -> bool:
    """Whether an object converts itself to a number, as `Decimal` does."""
    return not isinstance(value, str | bytes | bytearray) and (
        hasattr(type(value), "__float__") or hasattr(type(value), "__index__")
    )
