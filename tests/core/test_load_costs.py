"""How many candidates are drafted at once with an asynchronous model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import pytest

from benchmarks.server_queue import Machine, Simulation
from stars_engine import AlignParams, ConstantSchedule, SamplingParams
from stars_engine.algorithm.stars import StarsDecoding
from stars_engine.backends.base import DraftRequest
from stars_engine.core.autotune.autotuner import CandidateAutotuner
from stars_engine.core.autotune.load_costs import Load, LoadCosts
from stars_engine.core.engine_core import EngineCore
from stars_engine.core.overlap import pays
from stars_engine.core.request import Request, RequestQueue
from stars_engine.core.scheduler import Scheduler
from stars_engine.rewards.reward_requests import RoutedRequest
from stars_engine.testing import TableReward, TabularModel
from stars_engine.types import Score
from tests.support.rollouts import make_rollout


def noted(fixed: float, load: float, own: float, num: int = 300) -> LoadCosts:
    """Costs after verdicts whose times follow a line, with noise of a tenth."""
    rng, costs = Random(0), LoadCosts()
    for _ in range(num):
        count, mean = rng.randint(1, 6), rng.uniform(8, 24)
        costs.note(mean, count, (fixed + load * mean + own * count) * rng.uniform(0.9, 1.1))
    return costs


def test_the_load_is_a_mean_over_time() -> None:
    load = Load()
    load.set(4, 10.0)
    before = load.total(11.0)
    load.set(8, 12.0)
    load.set(0, 15.0)
    assert load.total(16.0) - before == pytest.approx(4 * 1 + 8 * 3)


def test_without_verdicts_a_further_candidate_costs_an_eighth() -> None:
    curve = LoadCosts().curve(1)
    assert curve(2) - curve(1) == pytest.approx(0.12 * curve(0))


def test_the_line_is_found() -> None:
    costs = noted(fixed=2.0, load=0.1, own=0.3)
    assert costs.candidate_s(1) == pytest.approx(0.4, rel=0.15)
    assert costs.candidate_s(16) == pytest.approx(0.1 + 0.3 / 16, rel=0.3)
    assert costs.curve(16)(16) == pytest.approx(2.0 + 1.6 + 0.3, rel=0.1)


def test_cheap_candidates_are_not_assumed_far_beyond_what_was_seen() -> None:
    costs = noted(fixed=5.0, load=0.0, own=0.0)
    curve = costs.curve(4)
    assert curve(30) - curve(16) < 0.5
    assert curve(200) - curve(100) > 0.05 * 5.0 * 10


def test_noisy_times_outweigh_the_assumption_later() -> None:
    rng, costs = Random(0), LoadCosts()
    for index in range(6):
        costs.note(8 + index, 2, 2.0 * rng.lognormvariate(0, 0.7) / (1 + index))
    assert costs.candidate_s(4) > 0  # although each of these was quicker than the one before


def test_a_candidate_never_saves_time() -> None:
    costs = noted(fixed=5.0, load=-0.1, own=0.0)
    assert costs.candidate_s(4) == 0
    assert costs.curve(4)(40) > 0


def test_old_verdicts_fade() -> None:
    costs = noted(fixed=2.0, load=0.01, own=0.0)
    for index in range(400):
        costs.note(8 + index % 9, 1, 2 + 0.5 * (8 + index % 9))
    assert costs.candidate_s(4) == pytest.approx(0.5, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("streams", "acceptance", "best"),
    [(1, 0.5, 3), (1, 0.2, 6), (4, 0.5, 2), (4, 0.2, 4), (16, 0.5, 1), (16, 0.2, 2)],
)
def test_the_learned_number_is_nearly_as_fast_as_the_best_one(
    streams: int, acceptance: float, best: int
) -> None:
    num_segments = 300 * max(1, streams // 2)
    fixed = Simulation(Machine(), streams, acceptance, best).run(num_segments)
    assert Simulation(Machine(), streams, acceptance).run(num_segments) > 0.88 * fixed


def test_drafting_ahead_pays_if_rewards_are_slow_or_rows_are_cheap() -> None:
    assert pays(0.5, 1.0, 0.5, 0.1, streams=4)
    assert not pays(0.5, 1.0, 0.5, 0.5, streams=4)
    assert not pays(0.1, 1.0, 0.5, 0.1, streams=4)
    assert not pays(0.5, None, 0.5, 0.0, streams=4)
    # Rows that are cancelled after a short call have cost little, but have saved little as well.
    assert pays(0.5, 1.0, 0.01, 0.1, streams=4)


class AnsweringModel(TabularModel):
    """An asynchronous model that answers at once."""

    def __init__(self) -> None:
        super().__init__(("a", "b"), lambda _: (0.5, 0.5))

    def submit(self, request: DraftRequest, reply: Callable[[Any], None]) -> Callable[[], object]:
        reply(self.draft([request])[0])
        return lambda: None


class RecordingTuner(CandidateAutotuner):
    """Gives each request three candidates, and records its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.others: list[list[int]] = []
        self.max_rows: list[int | None] = []
        self.noted: list[tuple[float, int]] = []

    def allocate(
        self,
        requests: Sequence[Request],
        *args: Any,
        max_rows: int | None,
        in_flight: Mapping[Request, int] | None = None,
        **more: Any,
    ) -> list[int]:
        self.others.append(list((in_flight or {}).values()))
        self.max_rows.append(max_rows)
        return [3] * len(requests)

    def note_load(self, request: Request, load: float, own: int, seconds: float) -> None:
        self.noted.append((load, own))


def test_candidates_that_are_scored_are_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    tuner, posted, asked = RecordingTuner(), list[Callable[[], None]](), list[RoutedRequest]()
    core = EngineCore(
        AnsweringModel(), Scheduler(max_rows=16), asked.extend, tuner, post=posted.append
    )
    align = AlignParams(schedule=ConstantSchedule(value=9.0), segment_len=1, max_attempts=9)
    sampling = SamplingParams(max_tokens=3, temperature=1.0, top_k=None)

    def step() -> None:
        nonlocal now_s
        now_s += 1
        core.step()
        while posted:
            posted.pop(0)()

    for seed in range(2):
        rollout = make_rollout(align=align, sampling=sampling, seed=seed)
        request = Request(rollout, TableReward({}, default=0.0), StarsDecoding())
        request.prompt_computed = True
        core.add(RequestQueue.of([request]))
        step()  # submits
        step()  # scores
    assert len(asked) == 6
    assert tuner.others == [[], [3]]
    assert tuner.max_rows == [16, 19]  # those that are scored take no rows
    for each in asked[:3]:
        each.request.reply(Score(0.0))
    step()
    [(load, own)] = tuner.noted
    assert own == 3
    assert load == pytest.approx((2 * 3 + 2 * 6) / 4)  # the second request came 2 s later
