"""How many candidates are drafted at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.autotuner import COSTS, Cost, measure
from stars_engine import (
    AlignParams,
    ConstantSchedule,
    FunctionReward,
    SamplingParams,
    StarsEngine,
)
from stars_engine.algorithm.stars import StarsDecoding
from stars_engine.algorithm.verification import NumDrafts
from stars_engine.backends.base import Draft, DraftRequest
from stars_engine.core.autotune.acceptance_estimates import AcceptanceEstimates, SegmentDraws
from stars_engine.core.autotune.allocation import Chances, allocate_rows
from stars_engine.core.autotune.autotuner import CandidateAutotuner
from stars_engine.core.autotune.cost_probe import logger as probe_logger
from stars_engine.core.autotune.cost_probe import probe_costs
from stars_engine.core.autotune.step_costs import StepCostCurve, StepCosts
from stars_engine.core.engine_core import EngineCore
from stars_engine.core.request import Request, RequestQueue
from stars_engine.core.scheduler import Scheduler
from stars_engine.errors import GenerationError
from stars_engine.rewards.function import FunctionRewardModel
from stars_engine.testing import TableReward, TabularModel
from tests.support.rollouts import make_rollout


def linear(slope: float) -> Cost:
    return StepCostCurve({rows: 1 + slope * (rows - 1) for rows in (1, 2, 4, 8, 16, 32, 64, 128)})


def bumpy(seed: int, most: int) -> Cost:
    """Costs that rise by steps of any height, or not at all."""
    rng, seconds, points = Random(seed), 1.0, {}
    for rows in range(1, most + 1):
        points[rows] = seconds
        seconds += rng.choice([0.0, 0.01, 0.1, 0.5])
    return StepCostCurve(points)


# --- costs ---


def test_costs_lie_between_measurements() -> None:
    costs = StepCosts()
    costs.note(2, 1.0)
    costs.note(8, 4.0)
    assert costs.of(5) == pytest.approx(2.5)
    assert costs.of(8) == 4.0
    assert costs.of(1) == pytest.approx(0.8 * 1.0 / 1.1)
    assert costs.of(15) == pytest.approx(0.8 * 4.0 * 2.4 / 1.7)


def test_newer_measurements_count_more() -> None:
    costs = StepCosts()
    costs.note(4, 1.0)
    for _ in range(50):
        costs.note(4, 2.0)
    assert costs.of(4) == pytest.approx(2.0, abs=1e-3)


def test_a_single_slow_step_is_ignored() -> None:
    costs = StepCosts()
    for seconds in (1.0, 40.0, 1.1, 1.0, 30.0):
        costs.note(4, seconds)
    assert costs.of(4) == 1.1


def test_a_row_count_that_was_slow_once_is_measured_again() -> None:
    costs = StepCosts()
    costs.note(8, 40.0)
    for _ in range(500):
        costs.note(4, 1.0)
    assert costs.of(8) == 40.0
    costs.note(4, 1.0)
    assert costs.of(8) == pytest.approx(0.8 * 1.7 / 1.3)


def test_costs_at_one_length_follow_those_at_the_nearest() -> None:
    costs = StepCosts()
    costs.probed = {1: 5.0, 2: 9.0, 8: 10.0}
    assert costs.of(8) / costs.of(1) == pytest.approx(2.0)  # nothing else is known
    costs.note(1, 0.1, num_tokens=70)
    costs.note(4, 0.3, num_tokens=70)
    costs.note(4, 3.0, num_tokens=5000)
    assert costs.of(4, num_tokens=200) == 0.3  # from 64 to 255 tokens
    assert costs.of(1, num_tokens=200) == 0.1
    assert costs.of(1, num_tokens=5000) == pytest.approx(1.0)
    assert costs.of(1, num_tokens=20_000) == pytest.approx(1.0)
    assert costs.of(1, num_tokens=0) == 0.1
    # What steps have not shown yet, the probe has: 4 rows lie between its 2 and 8.
    four = 9.0 + 1.0 / 3
    assert costs.of(2, num_tokens=70) == pytest.approx(0.1 * 9.0 / 5.0)
    assert costs.of(8, num_tokens=70) == pytest.approx(0.3 * 10.0 / four)


# --- one rollout ---


def quickest(acceptance: float, most: int, cost: Cost) -> int:
    """The least expected cost until acceptance, all numbers tried."""
    return min(range(1, most + 1), key=lambda m: cost(m) / (1 - (1 - acceptance) ** m))


def alone(acceptance: float, most: int, cost: Cost) -> int:
    [count] = allocate_rows([Chances(1, most, acceptance)], cost)
    return count


@pytest.mark.parametrize("slope", [0.0, 0.05, 0.2, 1.0])
@pytest.mark.parametrize("acceptance", [0.05, 0.2, 0.5, 0.9])
def test_the_chosen_number_is_the_quickest_in_expectation(slope: float, acceptance: float) -> None:
    cost = linear(slope)

    def expected(count: int) -> float:
        return cost(count) / (1 - (1 - acceptance) ** count)

    chosen = alone(acceptance, 20, cost)
    assert expected(chosen) == pytest.approx(min(map(expected, range(1, 21))), rel=1e-12)


@pytest.mark.parametrize("seed", range(40))
def test_a_single_request_minimises_the_expected_cost_until_acceptance(seed: int) -> None:
    rng, cost = Random(seed), bumpy(seed, 20)
    for acceptance in (rng.random() ** 2, rng.random()):
        most = rng.randint(1, 20)
        assert alone(acceptance, most, cost) == quickest(acceptance, most, cost)


def test_cheap_rows_are_used_and_expensive_ones_are_not() -> None:
    assert alone(0.2, 20, linear(0.0)) == 20
    assert alone(0.2, 20, linear(1.0)) == 1
    assert alone(0.2, 5, linear(0.0)) == 5
    crowd = allocate_rows([Chances(1, 20, 0.2)] * 16, linear(0.2))
    assert max(crowd) < alone(0.2, 20, linear(0.2))


def test_an_expensive_second_row_does_not_hide_cheaper_ones() -> None:
    """Two rows cost as much as eight: one by one, the second would not pay."""
    cost = StepCostCurve({1: 1.0, 2: 1.9, 8: 1.9})
    assert cost(2) / (1 - 0.8**2) > cost(1) / 0.2
    assert alone(0.2, 8, cost) == 8


# --- several rollouts ---


def rate(rollouts: Sequence[Chances], counts: Sequence[int], cost: Cost) -> float:
    """Draws expected to be used per second: each unless one before it is accepted."""
    used = (
        (1 - chances.acceptance) ** earlier
        for chances, count in zip(rollouts, counts, strict=True)
        for earlier in range(count)
    )
    return sum(used) / cost(sum(counts))


@pytest.mark.parametrize("seed", range(30))
def test_no_other_allocation_is_better(seed: int) -> None:
    rng, cost = Random(seed), bumpy(seed, 12)
    fixed = rng.randint(1, 3)
    rollouts = [Chances(fixed, fixed, rng.random())]
    rollouts += [Chances(1, rng.randint(1, 5), rng.random() ** 2) for _ in range(3)]
    for max_rows in (6, 9, None):
        counts = allocate_rows(rollouts, cost, max_rows)
        assert sum(counts) <= (max_rows or 18)
        assert counts[0] == fixed
        possible = product(*(range(r.least, r.most + 1) for r in rollouts))
        best = max(
            rate(rollouts, others, cost)
            for others in possible
            if max_rows is None or sum(others) <= max_rows
        )
        assert rate(rollouts, counts, cost) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_equal_shares_are_never_better(seed: int) -> None:
    rng, cost = Random(seed), bumpy(seed, 128)
    rollouts = [Chances(1, 20, rng.random()) for _ in range(rng.choice([2, 8, 40]))]
    got = rate(rollouts, allocate_rows(rollouts, cost, 128), cost)
    for share in range(1, min(20, 128 // len(rollouts)) + 1):
        assert got >= rate(rollouts, [share] * len(rollouts), cost) * (1 - 1e-12)


def test_rows_go_to_requests_that_are_rejected() -> None:
    easy, hard = Chances(1, 20, 0.95), Chances(1, 20, 0.1)
    counts = allocate_rows([easy, hard] * 4, linear(0.02), 64)
    assert set(counts[::2]) == {1}
    assert min(counts[1::2]) >= 4


def test_limits_are_respected() -> None:
    assert allocate_rows([], linear(0.1)) == []
    assert allocate_rows([Chances(5, 5, 0.5), Chances(3, 3, 0.1)], linear(0.0), 4) == [5, 3]
    assert allocate_rows([Chances(1, 2, 0.1), Chances(1, 20, 0.3)], linear(0.0)) == [2, 20]
    assert sum(allocate_rows([Chances(1, 20, 0.1)] * 5, linear(0.0), 17)) == 17
    assert allocate_rows([Chances(1, 20, 0.3)] * 128, linear(0.5), 128) == [1] * 128


def test_with_proportional_costs_each_request_has_one_row() -> None:
    assert allocate_rows([Chances(1, 20, 0.3)] * 40, lambda rows: rows + 0.0, 128) == [1] * 40


# --- whether it pays: simulated steps ---


@pytest.mark.slow
@pytest.mark.parametrize("max_rows", [128, 16])
@pytest.mark.parametrize("cost", COSTS.values(), ids=COSTS)
def test_simulated_steps_take_less_time(cost: Cost, max_rows: int) -> None:
    """They take less time than the best equal shares, which are not known beforehand."""
    ways = measure(cost, max_rows, range(10))
    assert ways["allocated, known"] * 1.1 < ways["equal shares"]
    assert ways["allocated, known"] < ways["each for itself, known"] * 1.05
    for call in ("learnt, 1st call", "learnt, 3rd call"):
        assert ways[call] < ways["equal shares"]
        assert ways[call] < ways["one posterior, each for itself"]


# --- acceptance estimates ---


def acceptance(
    estimates: AcceptanceEstimates, *history: tuple[int, int, bool], settings: str = "a"
) -> float:
    return estimates.acceptance(settings, [SegmentDraws(*draws) for draws in history])


def test_estimates_follow_observations() -> None:
    estimates = AcceptanceEstimates()
    assert acceptance(estimates, (0, 0, False)) == pytest.approx(1 / 3)
    for _ in range(97):
        estimates.note("a", SegmentDraws(0, 1, accepted=False))
    assert acceptance(estimates, (0, 0, False)) == pytest.approx(0.01)


def test_each_segment_index_has_its_own_estimate() -> None:
    estimates = AcceptanceEstimates()
    for _ in range(30):
        estimates.note("a", SegmentDraws(0, 1, accepted=True))
        estimates.note("a", SegmentDraws(1, 2, accepted=True))
        estimates.note("a", SegmentDraws(2, 10, accepted=True))
    found = [acceptance(estimates, (index, 0, False)) for index in (0, 1, 2, 3, 50)]
    assert found[0] > 0.9
    assert found[1] == pytest.approx(0.5, abs=0.05)
    assert found[2] == pytest.approx(0.1, abs=0.03)
    assert found[3] == found[4] == found[2]  # as at the last that was seen


def test_new_settings_start_from_the_overall_estimate() -> None:
    estimates = AcceptanceEstimates()
    for _ in range(50):
        estimates.note("a", SegmentDraws(0, 10, accepted=True))
    assert acceptance(estimates, (0, 0, False), settings="b") == pytest.approx(0.1, abs=0.01)
    for _ in range(10):
        estimates.note("b", SegmentDraws(0, 1, accepted=True))
    assert acceptance(estimates, (0, 0, False), settings="b") > 0.7
    assert acceptance(estimates, (0, 0, False)) == pytest.approx(0.1, abs=0.03)


def test_old_observations_fade() -> None:
    estimates = AcceptanceEstimates()
    for _ in range(1000):
        estimates.note("a", SegmentDraws(0, 1, accepted=True))
    for _ in range(20):
        estimates.note("a", SegmentDraws(0, 20, accepted=False))
    assert acceptance(estimates, (0, 0, False)) < 0.2


def test_only_the_latest_settings_are_remembered() -> None:
    estimates = AcceptanceEstimates()
    for _ in range(50):
        estimates.note("a", SegmentDraws(0, 1, accepted=True))
    for index in range(64):
        estimates.note(f"other {index}", SegmentDraws(0, 20, accepted=False))
    assert acceptance(estimates, (0, 0, False)) < 0.1


def test_an_estimate_includes_the_record_of_the_answer() -> None:
    estimates = AcceptanceEstimates()
    for index in range(6):
        for _ in range(30):
            estimates.note("a", SegmentDraws(index, 2, accepted=True))
    usual = acceptance(estimates, (3, 0, False))
    at_hand = [acceptance(estimates, (3, count, False)) for count in range(10)]
    assert at_hand[0] == usual
    assert at_hand == sorted(at_hand, reverse=True)
    assert at_hand[-1] < usual / 2
    easy = acceptance(estimates, (0, 1, True), (1, 1, True), (2, 1, True), (3, 0, False))
    hard = acceptance(estimates, (0, 9, True), (1, 12, True), (2, 20, False), (3, 0, False))
    assert hard < usual / 2 < usual < easy <= 0.99
    late = acceptance(estimates, (0, 20, False), (1, 1, True), (2, 1, True), (3, 0, False))
    soon = acceptance(estimates, (0, 1, True), (1, 1, True), (2, 20, False), (3, 0, False))
    assert soon < late < usual  # the latest segments tell most


# --- the probe ---


class Timed:
    """A language model whose calls take given times by a clock of its own."""

    def __init__(self, cost: Cost, context_len: int | None = None) -> None:
        self.vocab_size, self.context_len, self.now_s = 50, context_len, 0.0
        self.asked: list[int] = []
        self.prompts: list[Sequence[int]] = []
        self._cost = cost

    def perf_counter(self) -> float:
        return self.now_s

    def draft(self, requests: Sequence[DraftRequest]) -> list[Draft | GenerationError]:
        self.asked.append(len(requests))
        self.prompts += [request.token_ids for request in requests]
        self.now_s += self._cost(len(requests))
        return [Draft((0,) * len(request.uniforms)) for request in requests]


def probed(model: Any, monkeypatch: pytest.MonkeyPatch, max_rows: int | None) -> dict[int, float]:
    clock = SimpleNamespace(perf_counter=model.perf_counter)
    monkeypatch.setattr("stars_engine.core.autotune.cost_probe.time", clock)
    return probe_costs(model, max_rows)


def test_a_probe_measures_a_few_row_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Timed(lambda rows: 0.01 * rows)
    assert probed(model, monkeypatch, None) == pytest.approx(
        {rows: 0.01 * rows for rows in (1, 2, 4, 8, 16)}
    )
    assert max(map(max, model.prompts)) < model.vocab_size
    assert probed(Timed(lambda _: 0.01), monkeypatch, 7).keys() == {1, 2, 4}
    small = Timed(lambda _: 0.01, context_len=6)
    assert len(probed(small, monkeypatch, 2)) == 2
    assert len(small.prompts[0]) + 4 <= 6


@pytest.mark.parametrize("seconds", [0.05, 0.3, 5.0, 60.0])
def test_a_probe_of_a_slow_model_is_short(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Timed(lambda rows: seconds * (1 + 0.3 * math.log2(rows)))
    found = probed(model, monkeypatch, None)
    assert model.now_s <= max(2.0, seconds)  # one draft is made in any case
    assert bool(found) == (seconds < 1)


def test_a_probe_whose_text_ends_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Timed(lambda _: 0.01)
    monkeypatch.setattr(model, "draft", lambda requests: [Draft((0,)) for _ in requests])
    assert probed(model, monkeypatch, None) == {}


class Toy(TabularModel):
    """Two tokens; records its numbers of rows, and can fail on given prefixes."""

    def __init__(self, *, can_probe: bool = True) -> None:
        super().__init__(("a", "b"), lambda _: (0.5, 0.5))
        self.asked: list[list[int]] = []
        self._can_probe = can_probe

    def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]:
        if not self._can_probe and any(request.num_prompt_tokens > 1 for request in requests):
            raise RuntimeError("out of memory")
        handles = [id(request.handle) for request in requests]
        self.asked.append([handles.count(handle) for handle in dict.fromkeys(handles)])
        return super().draft(requests)


def written(
    model: Toy,
    *counts: int | str,
    threshold: float = 0.5,
    autotuner: CandidateAutotuner | None = None,
) -> list[str]:
    """Texts of rollouts with so many candidates at once, in steps together."""
    reward = TableReward({"a": 1.0, "ab": 1.0, "aba": 1.0}, default=0.0)
    requests = [
        Request(
            make_rollout(
                align=AlignParams(
                    schedule=ConstantSchedule(value=threshold),
                    segment_len=1,
                    max_attempts=6,
                    num_candidates=count,
                ),
                sampling=SamplingParams(max_tokens=3, temperature=1.0, top_k=None),
                seed=index,
            ),
            reward,
            StarsDecoding(),
        )
        for index, count in enumerate(counts)
    ]
    core = EngineCore(model, Scheduler(max_rows=16), autotuner=autotuner)
    core.add(RequestQueue.of(requests))
    assert core.scheduler.schedule() == requests
    assert core.scheduler.num_ready_rows == sum(1 if count == "auto" else count for count in counts)
    num_steps = 0
    while core.has_unfinished:
        core.step()
        num_steps += 1
    assert core.num_steps == num_steps
    return [request.rollout.text for request in requests]


def test_a_probe_runs_once_and_only_if_there_is_a_choice() -> None:
    fixed, chosen = Toy(), Toy()
    autotuner = CandidateAutotuner()
    texts = written(fixed, 3, 1, autotuner=autotuner)
    assert fixed.asked[0] == [3, 1]
    assert written(chosen, "auto", 1, autotuner=autotuner) == texts
    num_probing = 1 + 2 * 5
    assert chosen.asked[:num_probing] == [[n] for n in (1, 1, 1, 2, 2, 4, 4, 8, 8, 16, 16)]
    again = Toy()
    assert written(again, "auto", "auto", autotuner=autotuner) == texts
    assert len(again.asked[0]) == 2


def test_a_failing_probe_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger=probe_logger.name):
        texts = written(Toy(can_probe=False), "auto", "auto")
    assert texts == written(Toy(), 1, 1)
    assert not caplog.records


def test_a_fixed_number_is_kept_among_automatic_ones() -> None:
    model = Toy(can_probe=False)
    written(model, 4, "auto", "auto", threshold=9.0)
    assert all(counts[0] == 4 for counts in model.asked[:1])
    assert [counts[0] for counts in model.asked[:2]] == [4, 2]  # six attempts in all


def test_function_rewards_get_at_most_four_candidates() -> None:
    """Their times are not measured; a caller who sets a larger number gets it."""
    table = TableReward({}, default=0.0)
    function = FunctionRewardModel(FunctionReward(function=lambda prompt, completion: 0.0))
    free = CandidateAutotuner()
    for rows in (1, 2, 4, 8, 16, 32):
        free._costs.note(rows, 1.0)
    rollout = make_rollout(align=AlignParams(schedule=ConstantSchedule(value=9.0)))
    for reward, bounds, wanted in (
        (table, NumDrafts(1, 20), 20),
        (function, NumDrafts(1, 20), 4),
        (function, NumDrafts(1, 2), 2),
        (function, NumDrafts(6, 6), 6),
    ):
        assert free.allocate(
            [Request(rollout, reward, StarsDecoding())], [bounds], Toy(can_probe=False), max_rows=64
        ) == [wanted]


def test_every_request_gets_a_row_before_others_get_more() -> None:
    model = Toy(can_probe=False)
    texts = written(model, *["auto"] * 14, 2, threshold=9.0)
    assert [len(counts) for counts in model.asked[:1]] == [15]
    assert max(map(sum, model.asked)) <= 16
    assert texts == written(Toy(), *[1] * 15, threshold=9.0)


def test_the_next_call_starts_from_the_estimates_of_the_last() -> None:
    autotuner, model = CandidateAutotuner(), Toy(can_probe=False)
    autotuner._costs.note(1, 1.0)
    autotuner._costs.note(16, 2.0)
    autotuner.note_step = lambda *_: None  # type: ignore[method-assign]  # costs as they are
    written(model, "auto", threshold=9.0, autotuner=autotuner)
    first = model.asked[0]
    for _ in range(3):
        model.asked.clear()
        written(model, "auto", threshold=9.0, autotuner=autotuner)
    assert first < model.asked[0] == [6]  # nothing is ever accepted


# --- with the embedded pair ---


@pytest.mark.slow
def test_texts_equal_those_of_one_candidate_at_a_time(engine: StarsEngine) -> None:
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


@pytest.mark.parametrize("error", [ZeroDivisionError("by zero"), SystemExit("by zero")])
def test_estimates_survive_a_failed_step(
    engine: StarsEngine, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Errors end the request; an exit ends the whole step, and the engine core with it."""
    autotuners: list[CandidateAutotuner] = []
    real = CandidateAutotuner.allocate

    def spy(self: CandidateAutotuner, *args: Any, **options: Any) -> list[int]:
        autotuners.append(self)
        return real(self, *args, **options)

    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(CandidateAutotuner, "allocate", spy)
    align = AlignParams(schedule=ConstantSchedule(value=0.0), segment_len=8, num_candidates="auto")
    sampling = SamplingParams(seed=5, max_tokens=8)
    engine.generate("The film", sampling=sampling, align=align)
    with monkeypatch.context() as patch:
        patch.setattr(engine.model, "draft", fail)
        with pytest.raises(GenerationError, match="by zero"):
            engine.generate("The film", sampling=sampling, align=align)
    engine.generate("The film", sampling=sampling, align=align)
    assert len(autotuners) >= 3
    assert all(autotuner is autotuners[0] for autotuner in autotuners)
