"""Find ends of sentences in text."""

from __future__ import annotations

import re

_TERMINATORS = ".!?\u2026\u203c\u2047\u2048\u2049\u3002\uff0e\uff61\uff01\uff1f\u061f\u06d4\u0964"
_CLOSERS = (
    "\"')]}\u2019\u201d\u203a\u00bb\u300d\u300f\u3009\u300b\u3011\uff02\uff07\uff09\uff3d\uff5d"
)
_SENTENCE_END = re.compile(rf"(?:[{re.escape(_TERMINATORS)}][{re.escape(_CLOSERS)}]*|\n)\Z")


def ends_sentence(text: str) -> bool:
    """Return whether `text` ends with the end of a sentence.

    A sentence ends with `.`, `!`, `?`, an ellipsis, or their fullwidth, ideographic, Arabic and
    Devanagari equivalents, optionally followed by closing quotes and brackets; or with a newline.
    The context is ignored, so the point of an abbreviation or a decimal number also ends one.
    """
    return _SENTENCE_END.search(text) is not None
