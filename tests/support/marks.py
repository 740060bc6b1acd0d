"""Marks of many cases at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but_first(cases: Iterable[Any]) -> list[Any]:
    """Mark all cases of a parametrized test but the first as slow."""
    first, *rest = cases
    return [
        first,
        *(
            pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
            for case in rest
        ),
    ]
