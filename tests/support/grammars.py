"""Texts drawn from grammars, each next token with the same probability, on a tiny vocabulary."""

from __future__ import annotations

import json
import random
import re
from functools import cache
from typing import Any

import jsonschema
import pytest

from stars_engine import ConfigError, JsonGrammar
from stars_engine.config import Grammar
from stars_engine.grammars import Grammars, GrammarState

# All bytes, and tokens that cross the borders of JSON's parts.
PIECES = [
    *(bytes([byte]) for byte in range(256)),
    *(
        b'{"',
        b'":',
        b'",',
        b'"}',
        b", ",
        b'": "',
        b"]}",
        b"}}",
        b"[]",
        b"{}",
        b'["',
        b'"]',
        b"\n  ",
    ),
    *(b"true", b"null", b"false", b"12", b"-1", b"0.5", b"e1", "ü".encode(), "漢".encode(), b"ab"),
]
_ENDS = {ord(letter) for letter in '"}]'}


@cache
def byte_grammars() -> Grammars:
    return Grammars(PIECES, [], [])


def held(schema: Any, **options: Any) -> GrammarState | None:
    """Return the state of an empty text of a schema's grammar; None if the schema is refused."""
    grammar = JsonGrammar(json_schema=schema, **options)
    try:
        return byte_grammars().start(grammar)
    except ConfigError as error:
        message = str(error)
    # The message names what is refused: a keyword and its path, or a path without a valid value.
    assert re.search(r"`[$\w]+` at #|`\w+`: |no value satisfies .* at #", message), message
    return None


def draw(state: GrammarState, rng: random.Random, limit: int = 300) -> str | None:
    """Return a text of a grammar; None if it is not complete after so many tokens.

    Ends of strings and containers, and letters of ASCII, come more often than others.
    """
    grammars, state, text = byte_grammars(), state.fork(), b""
    for _ in range(limit):
        [mask] = grammars.allowed([state])
        assert not state.error, (text, state.error)
        is_complete = state.matcher.is_accepting()
        tokens = mask.nonzero()[0].tolist()
        assert tokens or is_complete, f"nothing goes on from {text!r}"
        if is_complete and (not tokens or rng.random() < 0.3):
            return text.decode()
        ends = [token for token in tokens if token in _ENDS]
        plain = [token for token in tokens if 32 <= token < 127 or token >= 256]
        if ends and rng.random() < 0.3:
            tokens = ends
        elif plain and rng.random() < 0.95:
            tokens = plain
        token = rng.choice(tokens)
        state.consume([token])
        assert not state.error, (text, token, state.error)  # read here: `allowed` wakes threads
        text += PIECES[token]
    return None


def texts(state: GrammarState, count: int, seed: int = 0) -> list[str]:
    """Return the texts of several draws that are complete."""
    drawn = (draw(state, random.Random(seed * 1000 + index)) for index in range(count))
    return [text for text in drawn if text is not None]


def accepts(state: GrammarState, text: str) -> bool:
    """Return whether a text is one of the grammar."""
    state = state.fork()
    state.consume(list(text.encode()))
    return not state.error and bool(state.matcher.is_accepting())


def is_of(grammar: Grammar, text: str) -> bool:
    """Return whether a text is one of a grammar that is not refused."""
    return accepts(byte_grammars().start(grammar), text)


def holds(schema: dict[str, Any], *valid: str, invalid: tuple[str, ...] = ()) -> None:
    """Check that a grammar writes some texts and not others, and that all it writes validates."""
    state = held(schema, compact=True)
    assert state is not None, schema
    for text in valid:
        assert accepts(state, text), text
        check(schema, text)
    for text in invalid:
        assert not accepts(state, text), text
    for text in texts(state, 30):
        check(schema, text)


def refused(schema: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        byte_grammars().start(JsonGrammar(json_schema=schema))


def check(schema: Any, text: str) -> None:
    """Raise `ValidationError` if a text is not JSON of a schema."""
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))
