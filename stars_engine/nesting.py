"""Whether values can be written as JSON, and how deeply they are nested."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

MAX_DEPTH = 200  # of values that are written as JSON: code that walks them may be recursive


def is_deeper(value: Any, depth: int) -> bool:
    """Whether lists and mappings are nested more deeply; not recursive."""
    level = [value]
    for _ in range(depth + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, (Mapping, list, tuple))
            for inner in (outer.values() if isinstance(outer, Mapping) else outer)
        ]
        if not level:
            return False
    return True


def is_json(value: Any, meaning: str) -> Any:
    """Return a value if it can be written as JSON, without infinities and lone surrogates.

    Raises:
        ValueError: The value cannot be written as JSON, or is nested too deeply.
    """
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{meaning} contains a lone surrogate, which is not a character. Hint: remove it"
        ) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{meaning} must be JSON: {error}. Hint: use strings, finite numbers, true, false, "
            "None, lists and dicts with string keys"
        ) from None
    if is_deeper(value, MAX_DEPTH):
        raise ValueError(f"{meaning} is nested more than {MAX_DEPTH} levels deep. Hint: flatten it")
    return value
