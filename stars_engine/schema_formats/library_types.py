"""Types of pydantic and the standard library whose JSON schemas allow values that they reject."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import annotated_types

from stars_engine.json_schema.keywords import UNSUPPORTED
from stars_engine.schema_formats.parts import mapped

_EXISTING = "{} must exist, which a grammar cannot know"
# By the function that validates the type.
REFUSED = {
    "PathType.validate_file": _EXISTING.format("a file"),
    "PathType.validate_directory": _EXISTING.format("a directory"),
    "PathType.validate_socket": _EXISTING.format("a socket"),
    "PathType.validate_new": "a file must not exist, which a grammar cannot know",
    "import_string": "an importable object is needed, and a grammar cannot know which there are",
    "PaymentCardNumber.validate": "a grammar cannot compute the check digit",
}
_SIZE = r"^[0-9]{1,9}(\.[0-9]{1,3})? ?([KMGT]i?)?B$"
_ADDRESS = {
    "type": "string",
    "format": "email",
    # `email-validator` refuses domains for special use, and two hyphens in a row.
    "allOf": [
        {"not": {"pattern": "--"}},
        {"not": {"pattern": r"\.([aA][rR][pP][aA]|[oO][nN][iI][oO][nN]|[tT][eE][sS][tT])$"}},
        {"not": {"pattern": r"\.([iI][nN][vV][aA][lL][iI][dD]|[lL][oO][cC][aA][lL])$"}},
        {"not": {"pattern": r"\.[lL][oO][cC][aA][lL][hH][oO][sS][tT]$"}},
    ],
}
NARROWED: dict[str, dict[str, Any]] = {
    "ByteSize._validate": {
        "anyOf": [
            {"type": "integer", "minimum": 0, "maximum": 10**18},
            {"type": "string", "pattern": _SIZE},
        ]
    },
    "EmailStr._validate": _ADDRESS,
    "NameEmail._validate": _ADDRESS,
}
# By the predicate, for the types of `annotated_types` such as `LowerCase`.
PREDICATES: dict[Any, str] = {
    str.islower: r"^[ -@\[-~]*[a-z][ -@\[-~]*$",
    str.isupper: r"^[ -`{-~]*[A-Z][ -`{-~]*$",
    str.isdigit: "^[0-9]+$",
    str.isascii: "^[ -~]*$",
}
HASHABLE = {"type": ["string", "number", "boolean", "null"]}

# Base64 of ASCII text: the first bit of each byte is 0.
_FIRST, _SECOND, _THIRD = "[A-Za-f]", "[A-HQ-Xg-nw-z0-3]", "[ABEFIJMNQRUVYZcdghklopstwx014589]"
_TEXT = (
    rf"({_FIRST}{_SECOND}{_THIRD}[A-Za-z0-9])*({_FIRST}[AQgw]==|{_FIRST}{_SECOND}"
    "[AEIMQUYcgkosw048]=)?"
)


def validator_of(schema: Mapping[str, Any]) -> str:
    """Return the name of the function that validates a core schema; empty if there is none."""
    function = schema.get("function")
    inner = function.get("function") if isinstance(function, Mapping) else None
    if not str(getattr(inner, "__module__", "")).startswith("pydantic"):
        return ""
    return getattr(inner, "__qualname__", "")


def replacement(schema: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the JSON schema of a type that pydantic describes too widely, or None."""
    name = validator_of(schema)
    if name in REFUSED:
        return {"type": "string", UNSUPPORTED: REFUSED[name]}
    if name in NARROWED:
        return dict(NARROWED[name])
    if name == "EncodedStr.decode_str" and "Base64" in repr(schema["function"]["function"]):
        return {"type": "string", "pattern": f"^{_TEXT}$"}
    if schema["type"] == "is-subclass":
        return {UNSUPPORTED: "a class has no JSON form"}
    if schema.get("custom_error_type") == "is_hashable":
        return dict(HASHABLE)
    return None


def without_reasons(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema without our own keyword for what a grammar cannot express."""
    kept = {name: part for name, part in schema.items() if name != UNSUPPORTED}
    return mapped(kept, without_reasons)


def pattern_of_predicate(schema: Mapping[str, Any]) -> str | None:
    """Return the pattern of text for which a predicate of `annotated_types` is true, or None."""
    function = schema.get("function")
    inner = function.get("function") if isinstance(function, Mapping) else None
    for cell in getattr(inner, "__closure__", None) or ():
        predicate = getattr(cell.cell_contents, "func", None)
        if isinstance(cell.cell_contents, annotated_types.Predicate) and isinstance(
            predicate, Hashable
        ):
            return PREDICATES.get(predicate)
    return None


# --- bounds of dates and times ---

_KEYS = ("gt", "ge", "lt", "le")


def has_bounds(schema: Mapping[str, Any]) -> bool:
    """Whether a core schema of dates or times has bounds."""
    return any(schema.get(key) is not None for key in (*_KEYS, "now_op"))


def bounded_dates(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return patterns of dates, or of the beginnings of timestamps, within bounds.

    Bounds that depend on a time or on today are two days narrower, because time zones differ.
    """
    lows: list[date] = []
    highs: list[date] = []
    for key in _KEYS:
        bound = schema.get(key)
        if bound is None:
            continue
        sign = 1 if key in ("gt", "ge") else -1
        step = 2 if isinstance(bound, datetime) else int(key in ("gt", "lt"))
        day = bound.date() if isinstance(bound, datetime) else bound
        (lows if sign == 1 else highs).append(day + timedelta(sign * step))
    today = datetime.now(UTC).date()
    if schema.get("now_op") is not None:
        is_past = schema["now_op"] == "past"
        (highs if is_past else lows).append(today + timedelta(-2 if is_past else 2))
    return _between(map(date.isoformat, lows), map(date.isoformat, highs))


def bounded_times(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return patterns of times within bounds, a second narrower and without a time zone."""
    clocks = {key: schema[key] for key in _KEYS if schema.get(key) is not None}
    if any(clock.tzinfo is not None for clock in clocks.values()):
        return {UNSUPPORTED: "a grammar cannot compare times with a time zone"}
    lows = [_moved(clocks[key], 1) for key in ("gt", "ge") if key in clocks]
    highs = [_moved(clocks[key], -1) for key in ("lt", "le") if key in clocks]
    return _between(lows, highs)


def _moved(clock: time, seconds: int) -> str:
    """Return a time moved by seconds, within its day."""
    moved = datetime.combine(date(2000, 1, 2), clock) + timedelta(seconds=seconds)
    if moved.date() != date(2000, 1, 2):
        return "23:59:59" if seconds > 0 else "00:00:00"
    return moved.strftime("%H:%M:%S")


def _between(lows: Iterable[str], highs: Iterable[str]) -> dict[str, Any]:
    """Return patterns of texts of one form that are between others, in alphabetical order."""
    patterns = [_from(text, up=True) for text in lows] + [_from(text, up=False) for text in highs]
    return {"allOf": [{"pattern": pattern} for pattern in patterns]}


def _from(text: str, *, up: bool) -> str:
    parts = [text]
    for index, digit in enumerate(text):
        if digit.isdigit() and digit != ("9" if up else "0"):
            digits = f"[{int(digit) + 1}-9]" if up else f"[0-{int(digit) - 1}]"
            rest = "".join("[0-9]" if char.isdigit() else char for char in text[index + 1 :])
            parts.append(text[:index] + digits + rest)
    return f"^({'|'.join(parts)})"
