"""Sources of grammars, in llguidance's variant of Lark's syntax, and keys that identify them.

Both are made in pieces, since a grammar may be large: a single call of the interpreter's own code
keeps all other threads waiting until it ends.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from stars_engine.config import Grammar
from stars_engine.json_schema import SPACED, Layout
from stars_engine.json_schema.compiling import OPTIONS, json_rules
from stars_engine.threads.give_way import give_way

_PIECE = 512  # choices, or tokens of JSON


def key_of(grammar: Grammar) -> str:
    """Return what differs whenever the content of two grammars does."""
    digest = hashlib.sha256()
    match grammar.kind:
        case "json":
            fields: tuple[object, ...] = (grammar.compact, grammar.extra_properties)
            pieces = _json(grammar.json_schema)
        case "choice":
            fields = ()
            pieces = _choices(grammar.choices)
        case "regex":
            fields, pieces = (), iter([grammar.pattern])
        case "ebnf":
            fields, pieces = (), iter([grammar.text])
    digest.update(f"{grammar.kind} {fields} ".encode())
    for piece in pieces:
        digest.update(piece.encode())
    return digest.hexdigest()


def source_of(
    grammar: Grammar, regex_to_lark: Callable[[str], str], to_lark: Callable[[str], str]
) -> str:
    """Return the source of a grammar.

    Args:
        grammar: The grammar.
        regex_to_lark: Converts a regular expression.
        to_lark: Converts GBNF, and returns other grammars as they are.

    Raises:
        Exception: The grammar is invalid, or uses an unsupported feature.
    """
    match grammar.kind:
        case "json":
            layout = Layout() if grammar.compact else SPACED
            schema = "".join(_json(grammar.json_schema))
            rules = json_rules("start", schema, layout, closed=not grammar.extra_properties)
        case "regex":
            if len(grammar.pattern) - len(grammar.pattern.rstrip("\\")) & 1:
                raise ValueError("the pattern ends in a backslash that escapes nothing")
            rules = f"start: /{regex_to_lark(grammar.pattern)}/"
        case "choice":
            # One terminal: as alternatives of a rule, thousands would stand side by side.
            rules = f"start: CHOICE\nCHOICE: {' | '.join(_choices(grammar.choices))}"
        case "ebnf":
            rules = str(to_lark(grammar.text))
    return rules + OPTIONS


def _json(value: Any) -> Iterator[str]:
    """Yield a value as JSON, in pieces."""
    tokens = json.JSONEncoder().iterencode(value)
    while piece := "".join(islice(tokens, _PIECE)):
        yield piece
        give_way()


def _choices(choices: Sequence[str]) -> Iterator[str]:
    """Yield some choices after others, as literals of the source."""
    for start in range(0, len(choices), _PIECE):
        yield " | ".join(map(json.dumps, choices[start : start + _PIECE]))
        give_way()
