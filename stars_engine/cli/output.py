"""Write text of models and prompts to standard output.

Control characters can move a terminal's cursor, rename its window, write to its clipboard or
reverse the order of letters. A terminal therefore gets them as visible escapes. A file or pipe gets
the text unchanged.
"""

from __future__ import annotations

import json
import re
import sys
from typing import TextIO

from rich.text import Text

# C0 except tabs and newlines, DEL and C1; line and paragraph separators; marks, embeddings,
# overrides and isolates that change the direction of text.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """Replace every control character in a text with a visible escape."""
    return _CONTROLS.sub(_escape, text)


def cell(text: str) -> Text:
    """Return a cell of a table: a name verbatim, without markup, on a terminal with escapes."""
    return Text(visible(text) if _real().isatty() else text)


def write(text: str, *, end: str = "\n") -> None:
    """Write to standard output; on a terminal, with visible escapes."""
    if _real().isatty():
        sys.stdout.write(visible(text) + end)  # a progress bar stays below this text
        sys.stdout.flush()
    else:
        _real().write(text + end)
        _real().flush()


def write_json(line: str) -> None:
    """Write a line of JSON, with JSON escapes for characters that the reader cannot take.

    These are characters outside the encoding of standard output and, on a terminal, all control
    characters.
    """
    try:
        line.encode(_real().encoding)
    except UnicodeEncodeError:
        line = json.dumps(json.loads(line))
    if _real().isatty():
        line = _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", line)
    write(line)


def _real() -> TextIO:
    """Return the real standard output, which progress bars replace."""
    real: TextIO = getattr(sys.stdout, "rich_proxied_file", sys.stdout)
    return real


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
