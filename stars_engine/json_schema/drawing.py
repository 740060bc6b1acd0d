"""Draw examples from the grammar of a JSON schema, without a language model."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from stars_engine.json_schema.compiling import OPTIONS, grammars_of_bytes, json_rules
from stars_engine.json_schema.layout import Layout
from stars_engine.problems import MissingExtraError

_COUNT = 40
_MAX_BYTES = 120
_ENDS = {ord(letter) for letter in '"}]'}


@lru_cache(maxsize=1024)
def examples(schema: str) -> tuple[str, ...]:
    """Return texts of values that a schema allows, the same ones each time.

    Args:
        schema: The JSON schema, as JSON.

    Returns:
        At most 40 texts; none if a grammar cannot express the schema or llguidance is missing.
    """
    try:
        rules = json_rules("start", schema, Layout())
        library, tokenizer = grammars_of_bytes()
    except (ValueError, MissingExtraError):
        return ()
    start = library.LLMatcher(tokenizer, rules + OPTIONS, log_level=0)
    rng = np.random.default_rng(0)
    drawn = (_draw(start.deep_copy(), rng) for _ in range(_COUNT))
    return tuple(text for text in drawn if text is not None)


def _draw(matcher: Any, rng: np.random.Generator) -> str | None:
    """Return a text; None if it is not complete after so many bytes."""
    text = bytearray()
    for _ in range(_MAX_BYTES):
        if matcher.is_error():
            return None
        bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[:256].nonzero()[0].tolist()
        if matcher.is_accepting() and (not allowed or rng.random() < 0.3):
            return text.decode()
        ends = [byte for byte in allowed if byte in _ENDS]
        plain = [byte for byte in allowed if 32 <= byte < 127]
        if ends and rng.random() < 0.2:
            allowed = ends
        elif plain and rng.random() < 0.95:
            allowed = plain
        if not allowed:
            return None
        byte = allowed[rng.integers(len(allowed))]
        matcher.consume_tokens([byte])
        text.append(byte)
    return None
