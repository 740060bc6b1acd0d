"""Marks of many cases at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def slow_but_each(step: int, cases: Iterable[Any]) -> list[Any]:
    """Mark all cases of a parametrized test as slow but the first of each `step` cases."""
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=[pytest.mark.slow] if index % step else [],
        )
        for index, case in enumerate(cases)
    ]


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
