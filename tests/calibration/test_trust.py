"""The trust report: its figures on answers with known outcomes, and on a real pair."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stars_engine import (
    ClassifierReward,
    ConfigError,
    RewardError,
    SamplingParams,
    StarsEngine,
    Verification,
    calibrate,
    trust_report,
)
from stars_engine.calibration.advice import (
    Remedy,
    advise,
    affordable_budget,
    choose,
    verification_advice,
)
from stars_engine.calibration.report_page import write_report
from stars_engine.calibration.trust import (
    Answers,
    SegmentTrust,
    between_prompts,
    borders,
    correlation,
    innovations,
    plain_curve,
    segment_trust,
)
from stars_engine.schedules import CurvePoint, Effort, Estimate

NUM_PROMPTS, PER_PROMPT, NUM_SEGMENTS = 240, 8, 4


def random_walks(noise: float = 0.0, prompt_scale: float = 0.0) -> Answers:
    """Rewards that add up independent steps; those of prefixes are seen with noise."""
    generator = np.random.default_rng(7)
    count = NUM_PROMPTS * PER_PROMPT
    prompts = np.repeat(np.arange(NUM_PROMPTS), PER_PROMPT)
    walk = generator.normal(size=(count, NUM_SEGMENTS)).cumsum(1)
    walk += prompt_scale * generator.normal(size=NUM_PROMPTS)[prompts][:, None]
    seen = walk.copy()
    seen[:, :-1] += noise * generator.normal(size=(count, NUM_SEGMENTS - 1))
    tokens = np.arange(1, NUM_SEGMENTS + 1) * 8.0
    return Answers(prompts, list(seen), [tokens] * count, walk[:, -1])


@pytest.mark.slow
def test_steps_of_a_random_walk_explain_their_share() -> None:
    """Four independent steps: rho_k = 1/2 each, so four halves where Best-of-N has one whole."""
    rho = innovations(random_walks())
    assert [value for value, _ in rho] == pytest.approx([0.5] * 4, abs=0.06)
    assert [share for _, share in rho] == [1.0] * 4
    trust = segment_trust(random_walks(), 8)
    assert trust.advantage.value == pytest.approx(2.0, abs=0.1)
    assert trust.advantage.low < trust.advantage.value < trust.advantage.high
    assert trust.mean_len == 8
    coarse = segment_trust(random_walks().coarser(16), 16)
    assert coarse.advantage.value == pytest.approx(2 / 2**0.5, abs=0.1)
    assert segment_trust(random_walks().coarser(32), 32).advantage.value == pytest.approx(1.0)


def test_ranks_of_prefixes_equal_those_of_the_walk() -> None:
    seen = borders(random_walks())
    assert [border.pearson for border in seen] == pytest.approx(
        [(k / 4) ** 0.5 for k in (1, 2, 3, 4)], abs=0.06
    )
    assert seen[-1].spearman == pytest.approx(1.0)
    assert [border.num_tokens for border in seen] == [8, 16, 24, 32]


def test_the_curve_of_plain_answers_follows_from_their_steps() -> None:
    """Steps are normal and independent, whatever the prompt: acceptance is 1 - Phi(offset)."""
    curve = plain_curve(random_walks(), max_attempts=20)
    assert [point.offset_sigmas for point in curve] == [step / 4 for step in range(-4, 11)]
    for point in curve:
        tail = math.erfc(point.offset_sigmas / 2**0.5) / 2
        assert point.acceptance == pytest.approx(tail, abs=0.02)
        if point.offset_sigmas <= 1.5:
            attempts = (1 - (1 - tail) ** 20) / tail
            assert point.budget == pytest.approx(attempts, rel=0.1)
            assert point.forced == pytest.approx((1 - tail) ** 20, abs=0.06)
    assert plain_curve(random_walks().coarser(32), max_attempts=20) == ()


@pytest.mark.slow
def test_variation_between_prompts_does_not_count_for_the_reward() -> None:
    """Large differences between prompts change neither correlations nor the advantage."""
    alike, apart = random_walks(), random_walks(prompt_scale=50.0)
    assert segment_trust(apart, 8).advantage.value == pytest.approx(
        segment_trust(alike, 8).advantage.value
    )
    assert between_prompts(alike) < 0.05
    assert between_prompts(apart) > 0.95


@pytest.mark.slow
def test_noise_on_prefixes_removes_the_advantage() -> None:
    """To the last segment alone, which sees the outcome itself: no more than Best-of-N."""
    advantages = [segment_trust(random_walks(noise), 8).advantage.value for noise in (0, 2, 50)]
    assert advantages == sorted(advantages, reverse=True)
    assert advantages[0] == pytest.approx(2.0, abs=0.1)
    assert advantages[2] == pytest.approx(1.0, abs=0.15)


def test_short_answers_count_by_how_many_reach_a_segment() -> None:
    walks = random_walks()
    cut = [rewards[:2] if i % 2 else rewards for i, rewards in enumerate(walks.rewards)]
    tokens = [t[:2] if i % 2 else t for i, t in enumerate(walks.num_tokens)]
    rho = innovations(Answers(walks.prompts, cut, tokens, walks.outcomes))
    assert [share for _, share in rho] == [1, 1, 0.5, 0.5]


def test_rewards_without_variance() -> None:
    assert correlation(np.ones(5), np.arange(5.0)) == 0.0


def numbers_in(value: object) -> Iterator[float]:
    """Every number, in order: rewards differ in rounding by what was read before."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from numbers_in(part)
    elif isinstance(value, int | float):
        yield value


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    return ["The film was", "My brother", "This actor", "One scene", "The music", "I saw"]


@pytest.mark.slow
def test_a_report_of_the_embedded_pair(
    engine: StarsEngine, prompts: list[str], tmp_path: Path
) -> None:
    sampling = SamplingParams(max_tokens=48)
    report = trust_report(engine, prompts, sampling=sampling, num_answers=6)
    assert report.num_answers == 36
    assert [segment.segment_len for segment in report.segments] == [4, 8, 16, 32]
    assert report.recommended_segment_len in (4, 8, 16, 32)
    assert report.borders[-1].spearman > report.borders[0].spearman
    assert {remedy.name for remedy in report.remedies} == {
        "none: segments of 16",
        "segments end with sentences",
        "greedy lookahead of 8",
    }
    again = trust_report(engine, prompts, sampling=sampling, num_answers=6)
    numbers = list(numbers_in(again.model_dump()))
    assert list(numbers_in(report.model_dump())) == pytest.approx(numbers, abs=1e-4)
    assert len(report.curve) == 15
    assert "drafted over kept" in report.summary()
    text = report.summary()
    for line in report.advice:
        assert line in text
    share = report.between_prompts
    words = [
        f"segment_len={report.recommended_segment_len}: ",
        "Only 6 pilot prompts",
        f"{share:.0%} of the final reward's variance lies between prompts",
    ]
    for word in words:
        assert word in text
    schedule = calibrate(
        engine, [*prompts, "A", "B"], segment_len=16, sampling=sampling, num_drafts=4
    )
    marked = report.replace(advice=(*report.advice, "<script>alert(1)</script>"))
    write_report(tmp_path / "r.html", marked, schedule)
    page = (tmp_path / "r.html").read_text()
    assert page.count("<svg") == 4
    for word in words:
        assert html.unescape(page).count(word) == 1  # the advice has one place
    for word in ("stars:embedded-lm", "stars:embedded-reward", "stars-engine", "max_tokens 48"):
        assert word in page
    assert page.count("<table>") == 4
    assert "<pre>" not in page
    assert "width=device-width" in page
    assert "<script>" not in page
    assert "http://" not in re.sub(r'xmlns[:\w]*="[^"]*"|<!DOCTYPE[^>]*>', "", page).replace(
        "http://www.w3.org", ""
    ).replace("http://purl.org", "").replace("http://creativecommons.org", "")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_report(tmp_path / "nowhere" / "r.html", report)


@pytest.mark.slow
def test_a_custom_judge_is_the_outcome(engine: StarsEngine, prompts: list[str]) -> None:
    """A judge that looks at length alone: the reward says little of it."""
    sampling = SamplingParams(max_tokens=32)

    def judge(prompt: str, answer: str) -> float:
        assert prompt in prompts
        return float(len(answer))

    own = trust_report(engine, prompts, sampling=sampling, num_answers=4, remedies=False)
    other = trust_report(
        engine, prompts, sampling=sampling, num_answers=4, remedies=False, judge=judge
    )
    assert other.judged_by == "the judge judge"
    assert other.remedies == ()
    assert other.borders[-1].pearson < own.borders[-1].pearson


@pytest.mark.slow
def test_an_answer_without_a_judgement_is_left_out(engine: StarsEngine, prompts: list[str]) -> None:
    sampling = SamplingParams(max_tokens=24)
    calls = iter(range(10**6))

    def judge(prompt: str, answer: str) -> float:
        return float("nan") if next(calls) == 3 else float(len(answer))

    report = trust_report(
        engine, prompts, sampling=sampling, num_answers=4, remedies=False, judge=judge
    )
    assert report.num_answers == 23
    assert all(-1 <= border.pearson <= 1 for border in report.borders)


@pytest.mark.slow
def test_a_second_reward_model_may_judge(engine: StarsEngine, prompts: list[str]) -> None:
    """The guide's own weights, reading text instead of ids, nearly agree with the guide."""
    sampling = SamplingParams(max_tokens=24)
    for judge in (ClassifierReward(name_or_path="stars:embedded-reward"), "stars:embedded-reward"):
        _agrees(engine, prompts, sampling, judge)


def _agrees(
    engine: StarsEngine, prompts: list[str], sampling: SamplingParams, judge: object
) -> None:
    report = trust_report(
        engine, prompts, sampling=sampling, num_answers=4, remedies=False, judge=judge
    )
    assert 0.9 < report.borders[-1].pearson <= 1


def a_segment(length: int, value: float, low: float, high: float, midway: float) -> SegmentTrust:
    return SegmentTrust(
        segment_len=length,
        mean_len=length,
        innovations=(0.5,),
        advantage=Estimate(value=value, low=low, high=high),
        spearman_midway=midway,
    )


@pytest.mark.parametrize(
    ("value", "low", "high", "midway", "verdict"),
    [
        (1.6, 1.3, 1.9, 0.6, "worthwhile"),
        (1.6, 1.1, 2.1, 0.6, "undecided"),
        (0.9, -0.01, 1.79, 0.6, "undecided"),
        (1.6, 1.3, 1.9, 0.17, "undecided"),  # the correlation midway contradicts it
        (0.9, 0.7, 1.1, 0.6, "not worthwhile"),
        (float("nan"), float("nan"), float("nan"), 0.6, "not worthwhile"),
    ],
)
def test_the_whole_interval_decides(
    value: float, low: float, high: float, midway: float, verdict: str
) -> None:
    chosen = choose([a_segment(8, value, low, high, midway)], 8)
    assert chosen.verdict == verdict
    [first, *_] = advise(chosen, [], shared=0.2, num_prompts=60, budget=2.7)
    assert first.lower().startswith(f"{verdict}: ")


def test_the_default_length_stays_unless_another_is_better_beyond_doubt() -> None:
    usual = a_segment(8, 1.5, 1.3, 1.7, 0.5)
    close, far = a_segment(16, 1.6, 1.4, 1.8, 0.5), a_segment(32, 2.2, 2.0, 2.4, 0.5)
    assert choose([usual, close], 8).segment is usual
    assert choose([usual, close, far], 8).segment is usual  # worthwhile, and the default
    weak = a_segment(8, 1.1, 0.9, 1.3, 0.5)
    assert choose([weak, close, far], 8).segment is far
    assert "1.10 [0.90, 1.30]" in choose([weak, far], 8).reason
    assert choose([close, far], 4).segment is far


@pytest.mark.parametrize(("length", "is_said"), [(16, True), (8, False), (None, False)])
def test_a_calibration_of_another_segment_length_is_said(
    length: int | None, *, is_said: bool
) -> None:
    chosen = choose([a_segment(8, 1.6, 1.3, 1.9, 0.6)], 8)
    lines = advise(chosen, [], shared=0.2, num_prompts=60, budget=2.7, calibrated_len=length)
    said = [line for line in lines if "this verdict is not about it" in line]
    assert bool(said) is is_said
    if said:
        assert "segments of 16 tokens" in said[0]
        assert "segment_len=8" in said[0]


def test_few_prompts_and_hard_prompts_are_said() -> None:
    chosen = choose([a_segment(8, 0.9, 0.7, 1.1, 0.4)], 8)
    lines = advise(chosen, [], shared=0.7, num_prompts=24, budget=None)
    assert any("Only 24 pilot prompts" in line for line in lines)
    assert any("nevertheless" in line for line in lines)
    assert any("70%" in line and "calibrated" in line for line in lines)
    assert "best_of_n" in lines[0]


def test_a_remedy_must_be_better_than_the_recommended_segments() -> None:
    chosen = choose([a_segment(8, 2.0, 1.9, 2.1, 0.6)], 8)
    plain = Remedy(name="none", settings={}, trust=a_segment(16, 1.4, 1.3, 1.5, 0.6))
    for low, is_better in ((1.6, False), (2.2, True)):
        other = Remedy(name="lookahead", settings={}, trust=a_segment(16, 2.3, low, 2.4, 0.6))
        lines = advise(chosen, [plain, other], shared=0.2, num_prompts=60, budget=None)
        assert ("instead of 2.00" in lines[-1]) is is_better
        assert lines[-1].startswith("Neither") is not is_better


def test_the_budget_comes_from_the_measured_costs() -> None:
    curve = [
        CurvePoint(offset_sigmas=0, acceptance=0.5, budget=2.0, forced=0.0),
        CurvePoint(offset_sigmas=1, acceptance=0.2, budget=5.03, forced=0.019),
        CurvePoint(offset_sigmas=2, acceptance=0.1, budget=12.0, forced=0.3),
    ]
    assert affordable_budget(curve) == 5.0
    assert affordable_budget(curve[2:]) is None


@pytest.mark.slow
def test_a_failed_check_comes_first(tmp_path: Path, engine: StarsEngine) -> None:
    def effort(budget: float) -> Effort:
        own = Estimate(value=budget, low=budget - 0.1, high=budget + 0.1)
        share = Estimate(value=0.5, low=0.4, high=0.6)
        return Effort(acceptance=share, budget=own, forced=share)

    check = Verification(
        predicted=effort(2.6), observed=effort(3.6), num_prompts=40, mean_reward=0.0
    )
    [line] = verification_advice(check)
    assert "budget is 3.600 on 40 other prompts" in line
    assert "no" in check.summary().splitlines()[2].split()
    sampling = SamplingParams(max_tokens=4)
    report = trust_report(engine, ["a"] * 4, sampling=sampling, num_answers=4, remedies=False)
    write_report(tmp_path / "r.html", report, verification=check)
    advice = (tmp_path / "r.html").read_text().partition("</ul>")[0]
    assert advice.index("failed its check") < advice.index("pilot prompts")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompts": ["a"]}, ["prompts", "1"]),
        ({"num_answers": 2}, ["num_answers", "2"]),
        ({"num_answers": "many"}, ["num_answers", "'many'", "4 or more"]),
        ({"judge": 3}, ["judge", "3", "f(prompt, answer)"]),
        ({"judge": SamplingParams()}, ["judge", "SamplingParams", "f(prompt, answer)"]),
        ({"sampling": SamplingParams(max_tokens=3)}, ["sampling.max_tokens", "3", "4 or more"]),
    ],
)
def test_unusable_settings_are_refused_before_the_pilot(
    engine: StarsEngine, monkeypatch: pytest.MonkeyPatch, arguments: dict, words: list[str]
) -> None:
    monkeypatch.setattr(StarsEngine, "generate", lambda *_, **__: pytest.fail("a pilot was run"))
    with pytest.raises(ConfigError) as caught:
        trust_report(engine, **{"prompts": ["a"] * 4, **arguments})
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("judge", "words"),
    [
        (lambda prompt, answer: 1 / 0, "ZeroDivisionError"),
        (lambda: 1.0, "TypeError"),
        (
            lambda prompt, answer: "good",
            "ValueError: the judge's score must be a number, not 'good'",
        ),
    ],
)
def test_a_judge_that_fails_is_named(
    engine: StarsEngine, prompts: list[str], judge: object, words: str
) -> None:
    sampling = SamplingParams(max_tokens=4)
    with pytest.raises(RewardError, match=rf"the judge failed .*prompts\[0\]: {words}.*Hint"):
        trust_report(
            engine, prompts[:4], sampling=sampling, num_answers=4, remedies=False, judge=judge
        )


def test_the_shortest_answers_that_can_be_reported(engine: StarsEngine, prompts: list[str]) -> None:
    sampling = SamplingParams(max_tokens=4)
    report = trust_report(engine, prompts[:4], sampling=sampling, num_answers=4, remedies=False)
    assert [segment.segment_len for segment in report.segments] == [4]
    assert report.summary()
