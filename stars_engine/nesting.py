"""How deeply values are nested."""

from __future__ import annotations

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
