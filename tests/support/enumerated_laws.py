"""The law of the real loop for a small case, enumerated, and its comparison with a closed form."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from stars_engine.core.offline import stars
from stars_engine.testing import TableReward, TabularModel, enumerate_law
from stars_engine.testing.enumerator import TreeNoise
from tests.support.closed_form import END, Case, next_probs
from tests.support.rollouts import make_rollout


@cache
def enumerated(case: Case) -> dict[tuple[str, ...], float]:
    """Run the real loop on every path and collect (text, finish reason)."""
    model = TabularModel(case.pieces, next_probs, end_id=END)
    reward = TableReward(dict(case.rewards), default=0.0, vetoed=case.vetoed)
    align, sampling = case.align(), case.sampling()

    def run(noise: TreeNoise) -> tuple[str, ...]:
        rollout = make_rollout(align=align, sampling=sampling, noise=noise)
        for _ in stars([rollout], model, reward):
            pass
        result = rollout.result()
        return (result.text, result.finish_reason)

    return enumerate_law(run)


def assert_same_law(case: Case, form: Callable[[Case], dict[tuple[str, ...], float]]) -> None:
    """Compare the enumerated law with a closed form, to 1e-12."""
    got, expected = enumerated(case), form(case)
    assert sum(got.values()) == pytest.approx(1.0, abs=1e-12)
    for outcome in got.keys() | expected.keys():
        assert got.get(outcome, 0.0) == pytest.approx(expected.get(outcome, 0.0), abs=1e-12)
