"""Cosine, callable, calibrated and auto schedules; presets; their files."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from stars_engine import (
    AlignParams,
    AutoSchedule,
    CalibratedSchedule,
    ConfigError,
    CosineSchedule,
    FunctionSchedule,
    LinearSchedule,
    NoSchedule,
    SamplingParams,
    ScheduleError,
    StarsConfig,
    StarsEngine,
    preset,
)
from stars_engine.core.offline import stars
from stars_engine.schedules import Line, Progress
from stars_engine.testing import TableReward, TabularModel, enumerate_law
from stars_engine.testing.enumerator import TreeNoise
from tests.support.rollouts import make_rollout

SHORT = SamplingParams(seed=3, max_tokens=24)


def at(num_tokens: int, **more: float) -> Progress:
    return Progress(segment_index=0, num_tokens=num_tokens, max_tokens=128, **more)


def line(a: float, b: float, c: float) -> Line:
    return Line(intercept=a, slope=b, offset=c, sigma=1.0)


CALIBRATED = CalibratedSchedule(
    stages=(line(0.0, 0.5, 0.25), line(1.0, 2.0, -0.5)),
    terminals=(None, line(3.0, 0.0, 0.125)),
    segment_len=8,
    beta=0.5,
    max_attempts=12,
)


def by_length(progress: Progress) -> float:
    return -math.inf if progress.segment_index == 0 else -100.0


def test_cosine_is_flat_at_both_ends_and_crosses_the_line_in_the_middle() -> None:
    ramp = {"initial": 2.0, "target": 6.0}
    cosine, linear = CosineSchedule(**ramp), LinearSchedule(**ramp)
    assert cosine.threshold(at(64)) == pytest.approx(linear.threshold(at(64)))
    assert cosine.threshold(at(8)) < linear.threshold(at(8))
    assert cosine.threshold(at(120)) > linear.threshold(at(120))
    assert cosine.threshold(at(128)) == cosine.threshold(at(500)) == 6.0
    weighted = CosineSchedule(target=8.0, initial_weight=0.25)
    assert weighted.threshold(at(0, prompt_reward=4.0)) == 5.0


def test_calibrated_thresholds_are_lines_in_the_prefix_reward() -> None:
    where = {"num_tokens": 8, "max_tokens": 64, "prefix_reward": 2.0}
    taus = [CALIBRATED.threshold(Progress(segment_index=k, **where)) for k in (0, 1, 7)]
    assert taus == [1.25, 4.5, 4.5]  # past the last stage it holds
    ending = CALIBRATED.threshold(Progress(segment_index=1, ends_text=True, **where))
    assert ending == 3.125
    assert CALIBRATED.threshold(Progress(segment_index=9, ends_text=True, **where)) == ending
    early = Progress(segment_index=0, **where)
    assert CALIBRATED.threshold(replace(early, ends_text=True)) == CALIBRATED.threshold(early)
    with pytest.raises(ConfigError, match="1 terminals for 2 stages"):
        CALIBRATED.replace(terminals=(None,))
    assert CALIBRATED.final_threshold(Progress(segment_index=0, **where)) == 4.5
    assert CALIBRATED.needs_prompt_reward
    flat = CALIBRATED.replace(stages=(line(1.0, 0.0, 0.5),), terminals=())
    assert not flat.needs_prompt_reward
    assert flat.threshold(at(8)) == 1.5  # where the prefix's reward is nan


def test_values_that_a_calibration_will_choose_are_shown_as_such() -> None:
    for align in (preset("best"), preset("safe"), AlignParams()):
        for shown in (repr(align), str(align)):
            assert "segment_len=32" not in shown
            assert "beta" not in shown.replace("relative_beta", "")
            assert "max_attempts=20" in shown
    assert "segment_len=32" in repr(preset("best", segment_len=32))
    assert "segment_len=32, " in repr(preset("paper", target=1.0))
    assert "beta=0.5" in repr(AlignParams(schedule=CALIBRATED))


def test_another_schedule_inherits_nothing_from_a_calibrated_one() -> None:
    align = AlignParams(schedule=CALIBRATED, max_attempts=9, on_exhausted="stop")
    auto = align.replace(schedule=AutoSchedule())
    assert auto == AlignParams(schedule=AutoSchedule(), max_attempts=9, on_exhausted="stop")
    assert auto.model_fields_set == {"schedule", "max_attempts", "on_exhausted"}
    assert align.replace(schedule=AutoSchedule(segment_len=4)).schedule.segment_len == 4
    ramp = align.replace(schedule=LinearSchedule(target=1, initial=0), segment_len=16)
    assert (ramp.beta, ramp.segment_len, ramp.max_attempts) == (0.0, 16, 9)
    again = align.replace(keep_rejected_text=True)
    assert (again.segment_len, again.beta, again.max_attempts) == (8, 0.5, 9)


def test_a_calibrated_schedule_sets_what_it_was_made_for() -> None:
    align = AlignParams(schedule=CALIBRATED)
    assert (align.segment_len, align.beta, align.max_attempts) == (8, 0.5, 12)
    own = AlignParams(schedule=CALIBRATED, segment_len=16)
    assert (own.segment_len, own.beta) == (16, 0.5)
    later = StarsConfig().align.replace(schedule=CALIBRATED)  # whose file says segment_len 16
    assert later.segment_len == 8
    from_values = AlignParams(schedule=CALIBRATED.model_dump(mode="json"))
    assert from_values == align


@pytest.mark.parametrize(
    "schedule",
    [
        CosineSchedule(target=1.0, initial=-1.0),
        FunctionSchedule(function="tests.calibration.test_schedules:by_length"),
        CALIBRATED,
        AutoSchedule(target_forced=0.05, segment_len=16, prompts=list("abcdefgh")),
    ],
    ids=lambda schedule: schedule.kind,
)
@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_schedules_survive_files(tmp_path: Path, schedule: object, suffix: str) -> None:
    config = StarsConfig(align=AlignParams(schedule=schedule))
    config.to_file(tmp_path / f"c.{suffix}")
    assert StarsConfig.from_file(tmp_path / f"c.{suffix}") == config


def test_a_calibrated_schedule_has_a_file_of_its_own(tmp_path: Path) -> None:
    CALIBRATED.to_file(tmp_path / "s.yaml")
    assert CalibratedSchedule.from_file(tmp_path / "s.yaml") == CALIBRATED
    (tmp_path / "s.yaml").write_text("stages: []")
    with pytest.raises(ConfigError, match="CalibratedSchedule"):
        CalibratedSchedule.from_file(tmp_path / "s.yaml")


def test_a_live_function_cannot_be_saved(tmp_path: Path) -> None:
    config = StarsConfig(align=AlignParams(schedule=FunctionSchedule(function=by_length)))
    with pytest.raises(ConfigError, match=r"align\.schedule.*'package\.module:name'"):
        config.to_file(tmp_path / "c.yaml")


# --- callables in the loop ---


@pytest.mark.slow
def test_a_function_of_progress_sets_the_thresholds(engine: StarsEngine) -> None:
    seen: list[Progress] = []

    def spy(progress: Progress) -> float:
        seen.append(progress)
        return -math.inf

    align = AlignParams(schedule=FunctionSchedule(function=spy), segment_len=8)
    [result] = engine.generate("This movie", sampling=SHORT, align=align)
    plain = AlignParams(schedule=NoSchedule(), segment_len=8)
    assert (
        result.token_ids == engine.generate("This movie", sampling=SHORT, align=plain)[0].token_ids
    )
    assert [progress.segment_index for progress in seen] == list(range(len(result.segments)))
    rewards = [segment.reward for segment in result.segments]
    assert math.isnan(seen[0].prefix_reward)
    assert [progress.prefix_reward for progress in seen[1:]] == rewards[:-1]
    asks = FunctionSchedule(function=spy, uses_prompt_reward=True)
    seen.clear()
    engine.generate("This movie", sampling=SHORT, align=align.replace(schedule=asks))
    assert seen[0].prefix_reward == seen[0].prompt_reward == seen[1].prompt_reward


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda progress: 1 / 0, "ZeroDivisionError"),
        (lambda progress: math.nan, "nan"),
        (lambda progress: "high", "ValueError"),
        ("nowhere.at_all:f", "nowhere"),
    ],
    ids=["raises", "nan", "text", "absent"],
)
def test_a_bad_function_fails_only_its_request(
    engine: StarsEngine, function: object, words: str
) -> None:
    bad = AlignParams(schedule=FunctionSchedule(function=function))
    good = AlignParams(schedule=NoSchedule())
    failed, fine = engine.generate(
        ["a", "b"], sampling=SHORT, align=[bad, good], return_exceptions=True
    )
    assert isinstance(failed, ScheduleError)
    assert words in str(failed)
    assert fine.text


# --- the law under thresholds that depend on the prefix's reward ---


@pytest.mark.parametrize("num_candidates", [1, 2])
@pytest.mark.parametrize("max_attempts", [1, 2, 3])
def test_the_law_with_calibrated_thresholds(num_candidates: int, max_attempts: int) -> None:
    """Two segments of one token; tau of the second is a line in the first one's reward."""
    rewards = {"": 0.3, "a": 1.0, "b": -0.5, "aa": 1.4, "ab": 0.2, "ba": 0.4, "bb": -0.9}
    model = TabularModel(("a", "b"), lambda ids: (0.25, 0.75) if ids else (0.5, 0.5))
    beta = 0.7
    schedule = CalibratedSchedule(
        stages=(line(0.1, 1.0, 0.2), line(-0.2, 0.75, 0.3)), segment_len=1, beta=beta
    )
    align = AlignParams(
        schedule=schedule,
        segment_len=1,
        beta=beta,
        max_attempts=max_attempts,
        num_candidates=num_candidates,
        on_exhausted="last",
    )
    sampling = SamplingParams(max_tokens=2, temperature=1.0, top_k=None)

    def run(noise: TreeNoise) -> str:
        rollout = make_rollout(align=align, sampling=sampling, noise=noise)
        for _ in stars([rollout], model, TableReward(rewards)):
            pass
        assert rollout.error is None
        return rollout.text

    def segment_law(prefix: str, q: dict[str, float], a: float, b: float, c: float) -> dict:
        tau = a + b * rewards[prefix] + c
        accept = {s: min(1.0, math.exp((rewards[prefix + s] - tau) / beta)) for s in q}
        reject = 1 - sum(q[s] * accept[s] for s in q)
        num_draws = sum(reject**j for j in range(max_attempts - 1))
        return {s: q[s] * accept[s] * num_draws + q[s] * reject ** (max_attempts - 1) for s in q}

    first = segment_law("", {"a": 0.5, "b": 0.5}, 0.1, 1.0, 0.2)
    expected = {}
    for s, p in first.items():
        second = segment_law(s, {"a": 0.25, "b": 0.75}, -0.2, 0.75, 0.3)
        expected |= {s + t: p * q for t, q in second.items()}
    law = enumerate_law(run)
    assert law.keys() == expected.keys()
    for text, probability in expected.items():
        assert law[text] == pytest.approx(probability, abs=1e-12)


# --- auto, presets, and what is refused ---


def test_other_models_are_calibrated_on_first_use() -> None:
    config = StarsConfig(model="a/b", reward="c/d")
    assert config.with_thresholds().schedule == AutoSchedule()
    assert config.with_thresholds().segment_len == AlignParams().segment_len
    mixed = StarsConfig(model="a/b", reward="c/d", align=AlignParams(max_attempts=7))
    assert mixed.with_thresholds().schedule == AutoSchedule()
    shipped = StarsConfig().with_thresholds()
    assert (shipped.schedule.kind, shipped.segment_len) == ("calibrated", 8)
    other = StarsConfig().with_thresholds(AlignParams(on_exhausted="last"))
    assert (other.schedule, other.segment_len) == (shipped.schedule, 8)  # what it was made for
    softer = StarsConfig().with_thresholds(AlignParams(beta=0.1))
    assert (softer.schedule.kind, softer.segment_len, softer.beta) == ("linear", 8, 0.1)
    longer = StarsConfig().with_thresholds(AlignParams(segment_len=32))
    assert longer.schedule != shipped.schedule
    assert AutoSchedule().target == ("budget", 2.7)


def test_presets() -> None:
    assert StarsConfig(align="best").align == AlignParams(schedule=AutoSchedule())
    assert preset("safe").on_exhausted == "stop"
    paper = preset("paper", target=8.0)
    assert paper.schedule == LinearSchedule(target=8.0)
    assert (paper.segment_len, paper.max_attempts) == (32, 20)
    assert preset("best", max_attempts=8).max_attempts == 8
    with pytest.raises(ConfigError, match=r"target.*is required.*'best'"):
        preset("paper")
    with pytest.raises(ConfigError, match="best, safe, guard, paper"):
        preset("fast")
    with pytest.raises(ConfigError, match="best, safe, guard, paper"):
        StarsConfig(align="fast")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AutoSchedule(budget=1.0), ["budget", "1.0", "> 1"]),
        (lambda: AutoSchedule(target_acceptance=1.5), ["target_acceptance", "1.5", "< 1"]),
        (lambda: AutoSchedule(budget=2, target_forced=0.1), ["budget, target_forced", "one"]),
        (lambda: AutoSchedule(beta=0.3), ["beta", "unknown", "relative_beta", "AlignParams(beta="]),
        (lambda: AutoSchedule(segment_len=0), ["segment_len=0", "1 or more"]),
        (lambda: AutoSchedule(prompts=("",) * 8), ["all 8 prompts are ''", "nothing about others"]),
        (lambda: AutoSchedule(prompts=["a"]), ["1 prompts", "at least 8"]),
        (
            lambda: AlignParams(schedule=AutoSchedule(segment_len=8), segment_len=16),
            ["segment_len=16", "segment_len=8", "give one"],
        ),
        (
            lambda: AlignParams(schedule=AutoSchedule(relative_beta=0.2), beta=0.5),
            ["beta=0.5", "relative_beta=0.2"],
        ),
        (
            lambda: AlignParams(schedule=AutoSchedule(budget=5), max_attempts=4),
            ["budget=5", "max_attempts=4"],
        ),
        (lambda: FunctionSchedule(function="no colon"), ["function", "package.module:name"]),
    ],
)
def test_invalid_values(make: object, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    for word in words:
        assert word in str(caught.value)
