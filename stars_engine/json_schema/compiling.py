"""Compile JSON schemas to the source of grammars, and grammars over bytes."""

from __future__ import annotations

import json
import re
from functools import cache, lru_cache
from typing import Any

import numpy as np

from stars_engine.json_schema.layout import SPACED, Layout
from stars_engine.json_schema.reading import read_schema
from stars_engine.json_schema.rules import Rules
from stars_engine.json_schema.supported import SupportedSchema
from stars_engine.problems import needs_extra

# Without forcing, masks allow every tokenization of text that must follow, not only one.
OPTIONS = '\n%llguidance {"no_forcing": true}\n'


@lru_cache(maxsize=256)
def json_rules(
    name: str,
    schema: str,
    layout: Layout = SPACED,
    *,
    closed: bool = True,
    strict: bool = True,
) -> str:
    """Return rules for JSON of a schema, in llguidance's variant of Lark's syntax.

    Args:
        name: Name of the first rule, in lower case; the names of all others begin with it.
        schema: The JSON schema, as JSON.
        layout: What stands between the parts.
        closed: Whether objects have the properties that are named, and no others.
        strict: Whether to refuse a schema that a grammar cannot express as a whole. If false, the
            rules express the rest, or any object if nothing can be expressed.

    Raises:
        ValueError: No value satisfies the schema, or a grammar cannot express it; the message
            names each keyword and its location.
    """
    supported = read_schema(json.loads(schema), closed=closed)
    if supported.unsupported and strict:
        raise ValueError(_listed(supported))
    try:
        return "\n".join(Rules(supported, name, layout, _matches_nothing).write())
    except ValueError:
        if strict:
            raise
        return json_rules(name, '{"type": "object"}', layout)


@lru_cache(maxsize=1024)
def unexpressed(schema: str) -> str:
    """Return what a grammar cannot express of a JSON schema, and where; empty if nothing.

    Args:
        schema: The JSON schema, as JSON.

    Raises:
        MissingExtraError: llguidance is not installed.
    """
    supported = read_schema(json.loads(schema))
    if supported.unsupported:
        return _listed(supported)
    try:
        Rules(supported, "start", SPACED, _matches_nothing).write()
    except ValueError as error:
        return str(error)
    return ""


def _listed(supported: SupportedSchema) -> str:
    reasons = [str(requirement) for requirement in supported.unsupported]
    return "; ".join(reasons[:4] + ["..."] * (len(reasons) > 4))


@lru_cache(maxsize=4096)
def _matches_nothing(terminal: str) -> bool:
    """Return whether a terminal matches no text at all.

    Raises:
        ValueError: The terminal is too complex to decide.
    """
    library, tokenizer = grammars_of_bytes()
    source = f"start: T\nT: {terminal}{OPTIONS}"
    matcher = library.LLMatcher(tokenizer, source, log_level=0)
    if not matcher.is_error():
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        if np.unpackbits(bits, bitorder="little")[:256].any() or matcher.is_accepting():
            return False
        if short_reason(matcher.get_error()) == "NoExtensionBias":
            return True
    raise ValueError(
        f"`pattern` is too complex for a grammar ({short_reason(matcher.get_error())})"
    )


@cache
def grammars_of_bytes() -> tuple[Any, Any]:
    """Return the library, and its tokenizer for a vocabulary of all bytes.

    Raises:
        MissingExtraError: llguidance is not installed.
    """
    with needs_extra("grammar"):
        import llguidance  # noqa: PLC0415 - an optional extra
    vocabulary = Vocabulary([*(bytes([byte]) for byte in range(256)), b"<end>"], [256])
    wrapped = llguidance.TokenizerWrapper(vocabulary)
    return llguidance, llguidance.LLTokenizer(wrapped, eos_token=256)


class Vocabulary:
    """The tokenizer interface of llguidance. It never encodes, because no token is forced."""

    def __init__(self, tokens: list[bytes], special_token_ids: list[int]) -> None:
        self.tokens, self.special_token_ids = tokens, special_token_ids
        self.eos_token_id, self.bos_token_id = len(tokens) - 1, None

    def __call__(self, text: object) -> list[int]:
        """Return no tokens."""
        return []


def short_reason(reason: str) -> str:
    """Return an error of the library without its source lines."""
    if reason.startswith("panic"):
        return "it has too many parts"
    return " ".join(re.split(r"\n\s*\d+ \| |\n<state>", reason)[0].split())
