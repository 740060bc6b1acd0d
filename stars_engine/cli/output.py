"""Text of models and prompts on its way to standard output, and what a terminal gets of it.

A terminal acts on control characters: they move its cursor, rename its window, fill its clipboard
or reverse the order of letters. It therefore gets them as visible escapes. A file or pipe gets the
text unchanged.
"""

from __future__ import annotations

import json
import re
import sys
from typing import TextIO

# C0 but for tabs and newlines, DEL and C1; line and paragraph separators; marks, embeddings,
# overrides and isolates that change the direction of text.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """Return a text with every control character as an escape that is read, not obeyed."""
    return _CONTROLS.sub(_escape, text)


def write(text: str, *, end: str = "\n") -> None:
    """Write to standard output: unchanged, or made visible where that is a terminal."""
    if _real().isatty():
        sys.stdout.write(visible(text) + end)  # while a progress bar is shown, this goes above it
        sys.stdout.flush()
    else:
        _real().write(text + end)
        _real().flush()


def write_json(line: str) -> None:
    """Write a line of JSON; what its reader cannot take as it is becomes an escape of JSON's.

    That is what the encoding of standard output lacks, and for a terminal every control character.
    """
    try:
        line.encode(_real().encoding)
    except UnicodeEncodeError:
        line = json.dumps(json.loads(line))
    if _real().isatty():
        line = _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", line)
    write(line)


def _real() -> TextIO:
    """Return standard output; progress bars put a stand-in of theirs in its place."""
    real: TextIO = getattr(sys.stdout, "rich_proxied_file", sys.stdout)
    return real


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
