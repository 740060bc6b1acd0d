"""Find stop strings and ends of sentences in text."""

from __future__ import annotations

import re
from collections.abc import Sequence

_TERMINATORS = ".!?\u2026\u203c\u2047\u2048\u2049\u3002\uff0e\uff61\uff01\uff1f\u061f\u06d4\u0964"
_CLOSERS = (
    "\"')]}\u2019\u201d\u203a\u00bb\u300d\u300f\u3009\u300b\u3011\uff02\uff07\uff09\uff3d\uff5d"
)
_SENTENCE_END = re.compile(rf"(?:[{re.escape(_TERMINATORS)}][{re.escape(_CLOSERS)}]*|\n)\Z")


def find_stop(
    text: str, stops: Sequence[str], start: int = 0, *, ends_after: int = 0
) -> int | None:
    """Return where the earliest stop string begins at or after `start`, or None.

    Args:
        text: The text.
        stops: The stop strings.
        start: The index to search from.
        ends_after: Stop strings that end at or before this index do not count.
    """
    found = [
        index
        for stop in stops
        if (index := text.find(stop, max(start, ends_after + 1 - len(stop)))) >= 0
    ]
    return min(found, default=None)


def held_back(text: str, stops: Sequence[str]) -> int:
    """Return the number of final characters of `text` that may begin a stop string."""
    longest = 0
    for stop in stops:
        for size in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:size]):
                longest = size
                break
    return longest


def ends_sentence(text: str) -> bool:
    """Return whether `text` ends with the end of a sentence.

    A sentence ends with `.`, `!`, `?`, an ellipsis, or their fullwidth, ideographic, Arabic and
    Devanagari equivalents, optionally followed by closing quotes and brackets; or with a newline.
    The context is ignored, so the point of an abbreviation or a decimal number also ends one.
    """
    return _SENTENCE_END.search(text) is not None
