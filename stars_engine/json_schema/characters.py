"""Sets of characters, and how JSON writes one of them."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable
from functools import cache
from typing import Any

Ranges = list[tuple[int, int]]  # of code points, both ends included

LAST = sys.maxunicode
# Written as they are, none of these may stand between quotes.
ESCAPED = {ord('"'), ord("\\"), *range(0x20), 0x7F}
SHORT = {8: "b", 9: "t", 10: "n", 12: "f", 13: "r", ord('"'): '"', ord("\\"): "\\"}


_ASCII = {
    "DIGIT": [(48, 57)],
    "WORD": [(48, 57), (65, 90), (95, 95), (97, 122)],
    "SPACE": [(9, 13), (32, 32)],
}
_SPACES = [(9, 13), (28, 32), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x180E, 0x180E),
           (0x2000, 0x200B), (0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F),
           (0x3000, 0x3000), (0xFEFF, 0xFEFF)]  # fmt: skip


def category(name: Any, *, wide: bool) -> Ranges:
    r"""Return a class such as `\d`: what all readings hold, or what any of them holds."""
    is_not = str(name).startswith("CATEGORY_NOT_")
    kind = str(name).rpartition("_")[2]
    ranges = _widest(kind) if wide ^ is_not else _ASCII[kind]
    return complement(ranges) if is_not else list(ranges)


@cache
def _widest(kind: str) -> Ranges:
    if kind == "SPACE":
        return _SPACES
    # Characters that no version of Unicode known here names may be letters of a later one.
    initials = ("N", "Cn") if kind == "DIGIT" else ("L", "M", "N", "Pc", "So", "Cn", "Cf")
    found = list(_ASCII[kind])
    begin = None
    for code in range(0x80, LAST + 2):
        inside = code <= LAST and unicodedata.category(chr(code)).startswith(initials)
        if inside and begin is None:
            begin = code
        elif not inside and begin is not None:
            found.append((begin, code - 1))
            begin = None
    return found


def complement(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Return all other characters."""
    found, begin = [], 0
    for first, last in sorted(ranges):
        if first > begin:
            found.append((begin, first - 1))
        begin = max(begin, last + 1)
    return [*found, (begin, LAST)] if begin <= LAST else found


def of_codes(ranges: Iterable[tuple[int, int]]) -> str:
    """Return one character of several, as JSON writes it, in Rust's syntax."""
    outside = complement(ranges)
    escaped = [c for c in sorted(ESCAPED) if not any(a <= c <= b for a, b in outside)]
    free = complement([*outside, *((code, code) for code in ESCAPED), (0xD800, 0xDFFF)])
    parts = [_escape(code) for code in escaped]
    if free:
        parts.append("[" + "".join(f"\\x{{{a:x}}}-\\x{{{b:x}}}" for a, b in free) + "]")
    return f"({'|'.join(parts)})" if parts else r"[^\x00-\x{10FFFF}]"


def _escape(code: int) -> str:
    """Return how JSON writes a character that it escapes."""
    forms = []
    if code in SHORT:
        forms.append(r"\\" + (r"\\" if code == ord("\\") else SHORT[code]))
    if (code < 0x20 and code not in SHORT) or code == 0x7F:
        forms.append(rf"\\u00{code:02x}")
    return "|".join(forms)
