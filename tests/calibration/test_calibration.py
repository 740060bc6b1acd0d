"""Calibration: the pilot through the real loop, and uses of its thresholds."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from stars_engine import (
    AlignParams,
    CalibratedSchedule,
    CompositeReward,
    ConfigError,
    NoSchedule,
    RewardError,
    RewardPart,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    StarsWarning,
    TokenIds,
    calibrate,
    standardize,
    trust_report,
    verify,
)
from stars_engine.calibration.effort import observed_effort
from stars_engine.calibration.fit import Fitter, Target
from stars_engine.calibration.pilot import Pilot, opening_schedule
from stars_engine.config import EngineParams
from tests.support.calibration import OPENINGS, QUICK, SAMPLING, Scaled, assert_same

# --- the pilot ---


@pytest.mark.slow
def test_the_pilot_is_the_real_loop(
    engine: StarsEngine, schedule: CalibratedSchedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the schedule gives under the pilot's seed are the pilot's own answers."""
    results = []
    real = Pilot.run

    def spy(*args: object, **kwargs: object) -> object:
        results.extend(real(*args, **kwargs))
        return list(results)

    monkeypatch.setattr(Pilot, "run", spy)
    again = calibrate(engine, OPENINGS, target_acceptance=0.4, seed=4, **QUICK)
    assert_same(again, schedule)  # same arguments, same result
    sampling = SAMPLING.replace(seed=4)
    plain = engine.generate(OPENINGS, sampling=sampling, align=AlignParams(schedule=schedule))
    assert [r.token_ids for r in plain] == [r.token_ids for r in results]
    for ours, pilot in zip(plain, results, strict=True):
        assert [s.num_attempts for s in ours.segments] == [s.num_attempts for s in pilot.segments]
    assert schedule.segment_len == 8
    assert len(schedule.stages) == 3


@pytest.mark.slow
def test_the_target_is_met_on_the_pilots_first_drafts(schedule: CalibratedSchedule) -> None:
    assert schedule.predicted is not None
    assert schedule.predicted.acceptance.value == pytest.approx(0.4, abs=0.02)
    budgets = [point.budget for point in schedule.curve]
    assert budgets == sorted(budgets)
    acceptances = [point.acceptance for point in schedule.curve]
    assert acceptances == sorted(acceptances, reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("max_active", [1, 3, 64])
def test_more_pilot_prompts_than_run_at_once(
    engine: StarsEngine, schedule: CalibratedSchedule, max_active: int
) -> None:
    """No pilot waits for another; progress is reported by stages, and by prompts within them."""
    config = StarsConfig(align=engine.config.align, engine=EngineParams(max_active=max_active))
    reports: list[tuple[int, int, bool]] = []
    caller = threading.current_thread()

    def progress(done: int, total: int) -> None:
        reports.append((done, total, threading.current_thread() is caller))

    prompts: list[tuple[int, int]] = []
    reporting = {
        "progress": progress,
        "stage_progress": lambda done, total: prompts.append((done, total)),
    }
    with StarsEngine(config, model=engine.model, reward=engine.reward) as own:
        found = calibrate(own, OPENINGS, target_acceptance=0.4, seed=4, **reporting, **QUICK)
        assert_same(found, schedule)
        stats = own.stats()
        # Each segment is counted once, though answers come back to the engine for every stage. The
        # last one is settled outside of it unless that takes more draws.
        assert 2 * len(OPENINGS) <= stats.num_segments <= 3 * len(OPENINGS)
        assert stats.num_kept_tokens == 8 * stats.num_segments
    assert reports == [(1, 3, True), (2, 3, True), (3, 3, True)]
    assert prompts[: len(OPENINGS)] == [(n, len(OPENINGS)) for n in range(1, len(OPENINGS) + 1)]
    assert sum(done == total for done, total in prompts) == 3


@pytest.mark.slow
def test_calibrations_at_once_do_not_starve_each_other(engine: StarsEngine) -> None:
    """There is room for one and a half."""
    short = {**QUICK, "sampling": SAMPLING.replace(max_tokens=8, min_tokens=8)}
    config = StarsConfig(engine=EngineParams(max_active=12))
    with (
        StarsEngine(config, model=engine.model, reward=engine.reward) as small,
        ThreadPoolExecutor(3) as pool,
    ):
        found = list(pool.map(lambda s: calibrate(small, OPENINGS[:8], seed=s, **short), range(3)))
    assert len(found) == 3


@pytest.mark.slow
@pytest.mark.parametrize("relative_beta", [0.0, 0.25])
def test_rewards_in_another_scale_give_the_same_texts(
    engine: StarsEngine, relative_beta: float
) -> None:
    """Times 128, and times 100 plus 50, up to rounding."""
    outcomes = []
    for factor, shift in ((1.0, 0.0), (128.0, 0.0), (100.0, 50.0)):
        own = Scaled(engine.reward, factor, shift)
        with StarsEngine(StarsConfig(), model=engine.model, reward=own) as scaled:
            schedule = calibrate(scaled, OPENINGS, budget=2.5, relative_beta=relative_beta, **QUICK)
            results = scaled.generate(
                OPENINGS, sampling=SAMPLING.replace(seed=8), align=AlignParams(schedule=schedule)
            )
        probabilities = [
            attempt.acceptance_prob
            for result in results
            for segment in result.segments
            for attempt in segment.attempts
        ]
        outcomes.append(([r.token_ids for r in results], probabilities))
    for texts, probabilities in outcomes[1:]:
        assert texts == outcomes[0][0]
        assert probabilities == pytest.approx(outcomes[0][1], abs=1e-5)
    if relative_beta:
        assert any(0 < probability < 1 for probability in outcomes[0][1])


@pytest.mark.slow
def test_predicted_effort_holds_on_other_prompts(
    engine: StarsEngine, schedule: CalibratedSchedule
) -> None:
    others = [opening.replace("The ", "A ") + " a" for opening in OPENINGS]
    seen = verify(engine, schedule, others, sampling=SAMPLING, num_answers=2)
    assert seen.predicted == schedule.predicted
    for name in ("acceptance", "budget", "forced"):
        assert getattr(seen.predicted, name).holds(getattr(seen.observed, name).value), name
        assert f"{name:12}" in seen.summary()
    assert math.isfinite(seen.mean_reward)
    with pytest.raises(ConfigError, match="prompts"):
        verify(engine, schedule, [])


@pytest.mark.slow
def test_observed_effort_counts_what_results_say(engine: StarsEngine) -> None:
    align = AlignParams(schedule={"kind": "constant", "value": math.inf}, max_attempts=3)
    results = engine.generate(OPENINGS[:4], sampling=SAMPLING.replace(seed=1), align=align)
    found = observed_effort(results)
    assert found.acceptance.value == 0
    assert found.budget.value == pytest.approx(3)
    assert found.forced.value == 1
    plain = engine.generate(
        OPENINGS[:4], sampling=SAMPLING.replace(seed=1), align=AlignParams(schedule=NoSchedule())
    )
    found = observed_effort(plain)
    assert (found.acceptance.value, found.budget.value, found.forced.value) == (1, 1, 0)


@pytest.mark.slow
@pytest.mark.parametrize("on_exhausted", ["stop", "raise", "fallback"])
def test_predictions_include_answers_that_stop(engine: StarsEngine, on_exhausted: str) -> None:
    """Few draws and a small acceptance: many answers end before their last segment."""
    text = "." if on_exhausted == "fallback" else None
    align = AlignParams(max_attempts=3, on_exhausted=on_exhausted, fallback_text=text)
    prompts = OPENINGS + [opening + " a" for opening in OPENINGS]
    schedule = calibrate(
        engine, prompts, budget=2.6, align=align, segment_len=4, sampling=SAMPLING, num_drafts=3
    )
    assert schedule.predicted is not None
    assert schedule.predicted.forced.value == 0
    assert schedule.predicted.budget.value == pytest.approx(2.6, rel=0.2)
    assert 0.2 < schedule.predicted.stopped.value < 1
    others = [opening + " the" for opening in OPENINGS]
    seen = verify(engine, schedule, others, align=align, sampling=SAMPLING, num_answers=2)
    for name in ("acceptance", "budget", "forced", "stopped"):
        assert getattr(seen.predicted, name).holds(getattr(seen.observed, name).value), name
    assert seen.observed.stopped.value > 0.2


@pytest.mark.slow
def test_a_reward_that_cannot_judge_an_empty_answer(engine: StarsEngine) -> None:
    """Then the first segment is measured by no prefix, and RM(x, "") is not asked for again."""

    def shy(prompt: str, completion: str) -> float:
        return len(completion) / 10 if completion else math.nan

    config = StarsConfig(model="stars:embedded-lm", reward=shy)
    with StarsEngine(config, model=engine.model) as own:
        schedule = calibrate(own, OPENINGS[:8], budget=2, **QUICK)
        assert schedule.stages[0].slope == 0
        assert not schedule.needs_prompt_reward
        align = AlignParams(schedule=schedule)
        assert own.generate("A", sampling=SAMPLING, align=align)[0].text


def test_a_reward_that_fails_in_the_pilot_is_reported(engine: StarsEngine) -> None:
    def failing(prompt: str, completion: str) -> float:
        if prompt == OPENINGS[3] and len(completion) > 40:
            raise LookupError("no opinion")
        return float(len(completion))

    config = StarsConfig(model="stars:embedded-lm", reward=failing)
    with (
        StarsEngine(config, model=engine.model) as own,
        pytest.raises(RewardError, match="opinion"),
    ):
        calibrate(own, OPENINGS[:8], **QUICK)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"budget": 1.0}, ["budget", "1.0", "above 1"]),
        ({"budget": 20.0}, ["budget", "20.0", "max_attempts=20"]),
        ({"target_acceptance": 0.0}, ["target_acceptance", "between 0 and 1"]),
        ({"budget": 2, "target_forced": 0.1}, ["budget and target_forced", "one of them"]),
        ({"segment_len": 0}, ["segment_len", "0", "1 or more"]),
        ({"relative_beta": -1.0}, ["relative_beta", "0 or more"]),
        ({"num_drafts": 21}, ["num_drafts", "21", "max_attempts=20"]),
        ({"sampling": SamplingParams(temperature=0)}, ["temperature", "above 0"]),
        ({"prompts": ["a"]}, ["prompts", "1", "8 or more", "Hint"]),
        ({"prompts": "a string of many characters"}, ["prompts", "a single str", "a list", "Hint"]),
        ({"prompts": TokenIds(range(9))}, ["prompts", "a single TokenIds", "a list", "Hint"]),
        ({"prompts": iter(OPENINGS)}, ["prompts", "list_iterator", "a list", "list(...)"]),
        ({"prompts": [1] * 8}, ["prompts", "int", "index 0", "TokenIds", "Hint"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_out_of_range(engine: StarsEngine, arguments: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        calibrate(engine, **{"prompts": OPENINGS, **arguments})
    for word in words:
        assert word in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("prompts", ["a string of many characters", [1] * 8, []])
def test_all_functions_check_their_prompts(
    engine: StarsEngine, schedule: CalibratedSchedule, prompts: object
) -> None:
    part = RewardPart(reward=engine.config.reward)
    reward = CompositeReward(parts={"a": part})
    config = StarsConfig(model="stars:embedded-lm", reward=reward)
    with StarsEngine(config) as composite:
        for call in (
            lambda: verify(engine, schedule, prompts),
            lambda: trust_report(engine, prompts),
            lambda: standardize(composite, prompts),
        ):
            with pytest.raises(ConfigError, match=r"prompts: .* is not allowed; "):
                call()


def test_a_pilot_waits_only_for_prompts_that_are_still_running(engine: StarsEngine) -> None:
    """One string is one prompt to the engine, however long it is."""
    fitter = Fitter(Target("budget", 2.0), max_attempts=4, beta=0.0, stops=False)
    pilot = Pilot(engine, fitter, num_drafts=4)
    align = AlignParams(segment_len=8, max_attempts=4, schedule=opening_schedule())
    call = partial(pilot.run, OPENINGS[0], sampling=SAMPLING, align=align)
    with ThreadPoolExecutor(1) as pool:
        [result] = pool.submit(call).result(timeout=60)
    assert len(result.segments) == len(fitter.lines) == 3


@pytest.mark.slow
def test_thresholds_for_long_answers_extend_those_for_short_ones(
    engine: StarsEngine,
) -> None:
    """Also for drafts that end the answer, which are many here; and a cut segment is no stage."""
    found = {}
    for max_tokens in (12, 14, 24):
        sampling = SamplingParams(max_tokens=max_tokens, stop=(" a",))
        found[max_tokens] = calibrate(
            engine, OPENINGS, target_acceptance=0.4, segment_len=4, sampling=sampling, num_drafts=6
        )
    short, cut, long = found.values()
    assert [len(short.stages), len(cut.stages)] == [3, 3]
    assert 3 < len(long.stages) <= 6  # as many as some answer reaches before it ends
    assert any(short.terminals)
    for one, more in ((short, cut), (cut, long)):
        for name in ("stages", "terminals"):
            ours, theirs = getattr(one, name), getattr(more, name)[: len(one.stages)]
            for a, b in zip(ours, theirs, strict=True):
                assert (a is None) == (b is None)
                if a is not None:
                    assert a.model_dump() == pytest.approx(b.model_dump(), abs=1e-4)
    assert short.beta == pytest.approx(long.beta)


# --- used elsewhere ---


@pytest.mark.slow
def test_answers_far_longer_than_the_calibrated_ones_warn(
    engine: StarsEngine, schedule: CalibratedSchedule
) -> None:
    align = AlignParams(schedule=schedule)
    assert schedule.max_tokens == SAMPLING.max_tokens
    for max_tokens in (24, 25, 48):  # warnings are errors here
        engine.generate("A", sampling=SAMPLING.replace(max_tokens=max_tokens), align=align)
    few = SAMPLING.replace(max_tokens=8, min_tokens=8)
    with pytest.warns(StarsWarning, match="min_tokens") as warned:
        engine.generate("A", sampling=few, align=align)
    assert len(warned) == 1
    with pytest.warns(StarsWarning, match=r"up to 24 tokens .* more than 48.*Hint") as warned:
        engine.generate(["A", "B"], sampling=SAMPLING.replace(max_tokens=49), align=align)


@pytest.mark.slow
def test_settings_that_differ_from_the_calibrated_ones_warn(
    engine: StarsEngine, schedule: CalibratedSchedule
) -> None:
    align = AlignParams(schedule=schedule)
    engine.generate("A", sampling=SAMPLING, align=align)  # no warning: warnings are errors here
    with pytest.warns(StarsWarning, match=r"sampling\.temperature is 0\.5, not 0\.8.*Hint"):
        engine.generate("A", sampling=SAMPLING.replace(temperature=0.5), align=align)
    with pytest.warns(StarsWarning, match=r"align\.segment_len is 4, not 8"):
        engine.generate("A", sampling=SAMPLING, align=align.replace(segment_len=4))


@pytest.mark.slow
def test_settings_of_the_trust_test_extend_a_calibrated_config(
    schedule: CalibratedSchedule,
) -> None:
    config = StarsConfig(align=AlignParams(schedule=schedule))
    own = config.with_thresholds(AlignParams(max_attempts=3, segment_len=16))
    assert (own.max_attempts, own.segment_len, own.beta) == (3, 16, schedule.beta)
    assert own.schedule == schedule


@pytest.mark.slow
def test_answers_that_all_end_in_the_first_segment(engine: StarsEngine) -> None:
    sampling = SamplingParams(max_tokens=32, stop=(" ",))
    schedule = calibrate(engine, OPENINGS[:8], segment_len=16, sampling=sampling)
    assert schedule.predicted is not None
    assert engine.generate("A", sampling=sampling, align=AlignParams(schedule=schedule))


@pytest.mark.slow
def test_a_reward_without_a_number_fails_only_the_pilot(engine: StarsEngine) -> None:
    def opinion(prompt: str, completion: str) -> float:
        return 1.0 if prompt == "bystander" else math.nan

    config = StarsConfig(
        model="stars:embedded-lm", reward=opinion, align=AlignParams(schedule=NoSchedule())
    )
    with StarsEngine(config, model=engine.model) as own:
        bystander = own.submit("bystander", sampling=SamplingParams(max_tokens=128, min_tokens=128))
        with pytest.raises(RewardError, match=r"give no threshold.*finite reward.*Hint"):
            calibrate(own, OPENINGS[:8], **QUICK)
        assert bystander.result()[0].finish_reason == "length"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, about what is refused then
def test_rewards_too_large_for_a_threshold_give_a_clear_error(engine: StarsEngine) -> None:
    config = StarsConfig(model="stars:embedded-lm", reward=lambda prompt, c: 1e300 * len(c))
    with (
        StarsEngine(config, model=engine.model) as own,
        pytest.raises(RewardError, match=r"give no threshold.*Hint") as caught,
    ):
        calibrate(own, OPENINGS[:8], **QUICK)
    assert ".." not in str(caught.value).replace("...", "")


def test_a_target_between_the_values_of_a_reward_warns(
    engine: StarsEngine, caplog: pytest.LogCaptureFixture
) -> None:
    config = StarsConfig(model="stars:embedded-lm", reward=lambda prompt, completion: 1.0)
    with StarsEngine(config, model=engine.model) as own:
        calibrate(own, OPENINGS[:8], target_acceptance=0.3, **QUICK)
    assert "target_acceptance=0.3 is not met" in caplog.text


def test_a_calibration_keeps_the_segment_length_of_thresholds_that_it_replaces(
    engine: StarsEngine,
) -> None:
    assert engine.config.align.segment_len == 8  # brought by the shipped thresholds
    sampling = SamplingParams(max_tokens=16)
    found = calibrate(engine, OPENINGS[:8], budget=2.0, num_drafts=8, sampling=sampling, seed=1)
    assert (found.segment_len, len(found.stages)) == (8, 2)
