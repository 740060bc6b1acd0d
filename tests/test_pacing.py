"""How many candidates are drafted at once."""

from __future__ import annotations

import pytest

from stars_engine import AlignParams, ConstantSchedule, SamplingParams, StarsEngine
from stars_engine.pacing import Load, Prospects, RoundCosts, best_count


def linear(slope: float) -> Load:
    costs = RoundCosts()
    for rows in (1, 2, 4, 8, 16, 32, 64):
        costs.note(rows, 1 + slope * (rows - 1))
    return Load(costs)


def test_costs_lie_between_measurements() -> None:
    costs = RoundCosts()
    costs.note(2, 1.0)
    costs.note(8, 4.0)
    assert costs.of(5) == pytest.approx(2.5)
    assert costs.of(8) == 4.0
    assert costs.of(1) == pytest.approx(0.8 * 1.0 / 1.1)
    assert costs.of(15) == pytest.approx(0.8 * 4.0 * 2.4 / 1.7)


def test_newer_measurements_count_more() -> None:
    costs = RoundCosts()
    costs.note(4, 1.0)
    for _ in range(50):
        costs.note(4, 2.0)
    assert costs.of(4) == pytest.approx(2.0, abs=1e-3)


@pytest.mark.parametrize("slope", [0.0, 0.05, 0.2, 1.0])
@pytest.mark.parametrize("acceptance", [0.05, 0.2, 0.5, 0.9])
def test_no_other_number_is_expected_to_be_quicker(slope: float, acceptance: float) -> None:
    load = linear(slope)

    def expected(count: int) -> float:
        return load.cost(count) / (1 - (1 - acceptance) ** count)

    chosen = best_count(acceptance, 20, load)
    assert expected(chosen) == min(expected(count) for count in (1, 2, 3, 4, 6, 8, 10, 12, 16, 20))


def test_free_rows_are_all_used_and_dear_ones_are_not() -> None:
    assert best_count(0.2, 20, linear(0.0)) == 20
    assert best_count(0.2, 20, linear(1.0)) == 1
    assert best_count(0.2, 5, linear(0.0)) == 5
    crowded = Load(linear(0.2).costs, num_rollouts=16)
    assert best_count(0.2, 20, crowded) < best_count(0.2, 20, linear(0.2))


def test_prospects_follow_what_is_seen() -> None:
    prospects = Prospects()
    assert prospects.acceptance == pytest.approx(1 / 3)
    for _ in range(97):
        prospects.note(accepted=False)
    assert prospects.acceptance == pytest.approx(0.01)


def test_texts_are_those_of_one_at_a_time(engine: StarsEngine) -> None:
    align = AlignParams(schedule=ConstantSchedule(value=1.5), segment_len=8, max_attempts=12)
    prompts, sampling = ["The film", "I was", "Nobody"], SamplingParams(seed=5, max_tokens=40)
    found = {
        count: [
            (result.text, result.usage.num_attempts)
            for result in engine.generate(
                prompts, sampling=sampling, align=align.replace(num_candidates=count)
            )
        ]
        for count in (1, "auto")
    }
    assert found["auto"] == found[1]
