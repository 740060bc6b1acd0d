"""Warnings about unsuitable settings: each once per runtime, with its numbers."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any

import pytest

from stars_engine import (
    AlignParams,
    Attempt,
    CalibratedSchedule,
    ConstantSchedule,
    EngineStats,
    NoSchedule,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    StarsWarning,
)
from stars_engine.algorithm.candidate import Candidate, ParsedDraft
from stars_engine.algorithm.rollout import Draw, Rollout
from stars_engine.calibration.fit import Fitter, Target
from stars_engine.calibration.pilot import StageDecoding
from stars_engine.core.offline import stars
from stars_engine.runtime.diagnostics import (
    Diagnostics,
    GuardCheck,
    deviations,
    standard_checks,
)
from stars_engine.schedules import Effort, Estimate, Line
from stars_engine.testing import TableReward, TabularModel
from stars_engine.types import Score
from tests.support.rollouts import make_rollout

NEVER = ConstantSchedule(value=1e9)


@pytest.fixture
def own(engine: StarsEngine) -> Iterator[StarsEngine]:
    """A new runtime over the loaded models."""
    config = StarsConfig(align=engine.config.align)
    with StarsEngine(config, model=engine.model, reward=engine.reward) as mine:
        yield mine


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "stars_engine.runtime.diagnostics" and record.levelno == logging.WARNING
    ]


# --- through the engine ---


@pytest.mark.slow
def test_forced_segments_warn_once(own: StarsEngine, caplog: pytest.LogCaptureFixture) -> None:
    align = AlignParams(schedule=NEVER, segment_len=2, max_attempts=2)
    sampling = SamplingParams(seed=1, max_tokens=40, n=2, min_tokens=40)
    own.generate("The", sampling=sampling, align=align)
    assert own.stats().num_segments == 40
    assert warnings_in(caplog) == []  # too few to tell
    for _ in range(2):
        own.generate("The", sampling=sampling, align=align)
    [message] = [text for text in warnings_in(caplog) if "forced" in text]
    assert message.startswith("60 of 60 segments were forced (100.0%)")
    assert "Hint: " in message
    stats = own.stats()
    assert (stats.num_segments, stats.num_forced, stats.forced_rate) == (120, 120, 1.0)


@pytest.mark.slow
def test_low_acceptance_warns_once(own: StarsEngine, caplog: pytest.LogCaptureFixture) -> None:
    align = AlignParams(schedule=NEVER, segment_len=4, max_attempts=60, on_exhausted="stop")
    for seed in range(6):
        own.generate("The", sampling=SamplingParams(seed=seed), align=align)
    [message] = warnings_in(caplog)
    assert message.startswith("0 of 240 draws were accepted (0.0%)")
    stats = own.stats()
    assert (stats.num_attempts, stats.acceptance_rate, stats.num_segments) == (360, 0.0, 0)
    assert math.isnan(stats.forced_rate)


@pytest.mark.slow
def test_equal_draws_warn_once(own: StarsEngine, caplog: pytest.LogCaptureFixture) -> None:
    align = AlignParams(schedule=NEVER, segment_len=4, max_attempts=16, on_exhausted="stop")
    sampling = SamplingParams(temperature=0.01)
    for seed in range(6):
        own.generate("The", sampling=sampling.replace(seed=seed), align=align)
    [message] = warnings_in(caplog)
    assert message.startswith("60 of 60 draws repeat an earlier draw")
    assert "temperature" in message
    assert own.stats().num_repeated_draws == own.stats().num_similar_draws == 90


@pytest.mark.slow
def test_nearly_equal_draws_warn(own: StarsEngine, caplog: pytest.LogCaptureFixture) -> None:
    align = AlignParams(schedule=NEVER, segment_len=8, max_attempts=16, on_exhausted="stop")
    prompts = ["The", "The plot", "I think", "My"]
    warm = SamplingParams(seed=1, temperature=1.0, top_k=None)
    own.generate(prompts, sampling=warm, align=align)
    assert own.stats().num_similar_draws == 0
    assert not [text for text in warnings_in(caplog) if "draws repeat" in text]
    for seed in (1, 2):  # of all 180 further draws
        own.generate(prompts, sampling=SamplingParams(seed=seed, temperature=0.15), align=align)
    stats = own.stats()
    assert stats.num_repeated_draws < 60 < stats.num_similar_draws
    [message] = [text for text in warnings_in(caplog) if "draws repeat" in text]
    assert "or nearly so" in message
    assert "temperature" in message


@pytest.mark.parametrize(
    ("drafts", "num_similar"),
    [
        (["aaaaaaaa", "aaaabaaa"], 1),  # one of eight
        (["aaaaaaaa", "aaaabaab"], 0),  # two of eight
        (["aaaaaaa", "aaaabaa"], 0),  # one of seven
        (["aaaaaaaa", "aaaaaaa"], 1),  # shorter by one
        (["aaaaaaa", "aaaaaaab"], 1),  # longer by one
        (["aaaaaaaa", "aaaaaab"], 0),  # shorter by one, and one differs
        (["a" * 16, "b" * 16, "a" * 14 + "bb"], 1),  # like the first, unlike the one before
    ],
)
def test_draws_are_similar_up_to_one_token_of_eight(drafts: list[str], num_similar: int) -> None:
    rollout = make_rollout(
        align=AlignParams(schedule=NEVER, segment_len=16),
        sampling=SamplingParams(max_tokens=16, temperature=1.0),
    )
    for text in drafts:
        ids = tuple(text.encode())
        attempt = Attempt(
            reward=0.0,
            threshold=1.0,
            acceptance_prob=0.0,
            verdict="rejected",
            eligible=True,
            num_tokens=len(ids),
        )
        shown = ParsedDraft(len(ids), text, ids, None)
        candidate = Candidate(ids, text, None, shown, 0, len(ids))
        rollout.record(Draw(candidate, attempt), Score(0.0))
    assert rollout.costs["num_similar_draws"] == num_similar


@pytest.mark.slow
def test_suitable_settings_do_not_warn(own: StarsEngine, caplog: pytest.LogCaptureFixture) -> None:
    sampling = SamplingParams(seed=1, n=30)
    # Of short segments, such as the pair ships with, a few are drawn twice by chance.
    align = own.config.align.replace(segment_len=32)
    own.generate(["The plot", "The"], sampling=sampling, align=align)
    stats = own.stats()
    assert stats.num_segments >= 200
    assert stats.forced_rate <= 0.10
    assert stats.acceptance_rate >= 0.05
    assert stats.num_repeated_draws == 0
    assert warnings_in(caplog) == []


@pytest.mark.slow
def test_plain_sampling_and_best_of_n_do_not_warn_about_thresholds(
    own: StarsEngine, caplog: pytest.LogCaptureFixture
) -> None:
    own.vanilla("The", sampling=SamplingParams(seed=1, n=60, max_tokens=4))
    own.best_of_n(["The"] * 3, 100, sampling=SamplingParams(seed=1, max_tokens=2))
    stats = own.stats()
    assert (stats.num_attempts, stats.num_accepted, stats.num_segments) == (300, 3, 0)
    assert warnings_in(caplog) == []


@pytest.mark.slow
def test_greedy_sampling_has_its_own_warning(
    own: StarsEngine, caplog: pytest.LogCaptureFixture
) -> None:
    align = AlignParams(schedule=NEVER, segment_len=1)
    with pytest.warns(StarsWarning, match="temperature is 0"):
        own.generate("The", sampling=SamplingParams(temperature=0, max_tokens=80), align=align)
    assert own.stats().num_forced >= 50
    assert warnings_in(caplog) == []


# --- their borders ---


def ended(accepted: str, *, num_tokens: int = 1, max_attempts: int = 1, seed: int = 0) -> Rollout:
    """A rollout of one-token segments of which those that say `accepted` are accepted."""
    letters = "ab"
    model = TabularModel(letters, lambda done: [1.0, 0.0] if len(done) % 2 else [0.0, 1.0])
    align = AlignParams(
        schedule=ConstantSchedule(value=1.0), segment_len=1, max_attempts=max_attempts
    )
    sampling = SamplingParams(max_tokens=num_tokens, temperature=1.0, top_k=None)
    rollout = make_rollout(align=align, sampling=sampling, seed=seed)

    class Last(TableReward):
        def score(self, inputs: list) -> list[float]:
            return [float(item.text[-1] in accepted) for item in inputs]

    for _ in stars([rollout], model, Last({})):
        pass
    return rollout


def messages_of(rollouts: list[Rollout]) -> list[str]:
    """The first words of the messages of the standard checks."""
    messages = []
    for check in standard_checks():
        for rollout in rollouts:
            message = check.observe(rollout)
            if message is not None:
                messages.append(message.split(":")[0])
                break
    return messages


def test_forced_above_a_tenth_of_fifty() -> None:
    forced, kept = ended(""), ended("ab")
    assert messages_of([forced] * 5 + [kept] * 45) == []
    assert messages_of([kept] * 44 + [forced] * 5) == []
    assert messages_of([kept] * 44 + [forced] * 6) == ["6 of 50 segments were forced (12.0%)"]


def test_requested_forced_segments_do_not_warn() -> None:
    """Half of all are predicted to be forced, three fifths at most."""
    unknown = Estimate(value=1.0, low=1.0, high=1.0)
    half = Estimate(value=0.5, low=0.4, high=0.6)
    schedule = CalibratedSchedule(
        stages=(Line(intercept=0.0, slope=0.0, offset=0.0, sigma=1.0),),
        segment_len=1,
        predicted=Effort(acceptance=unknown, budget=unknown, forced=half),
    )
    forced, kept = ended(""), ended("ab")
    for rollout in (forced, kept):
        rollout.align = rollout.align.replace(schedule=schedule)
    assert messages_of([kept] * 21 + [forced] * 29) == []
    assert messages_of([kept] * 19 + [forced] * 31) == [
        "31 of 50 segments were forced (62.0%), but the calibration predicts 60.0% at most"
    ]


@pytest.mark.slow
def test_pilots_do_not_consume_warnings(own: StarsEngine, caplog: pytest.LogCaptureFixture) -> None:
    """Their drafts are not counted, since their thresholds are still being found."""
    align = AlignParams(schedule=NEVER, segment_len=2, max_attempts=2)
    sampling = SamplingParams(seed=1, max_tokens=40, n=3, min_tokens=40)
    high = Line(intercept=1e9, slope=0.0, offset=0.0, sigma=1.0)
    fitter = Fitter(
        Target("budget", 2.0), max_attempts=2, beta=0.0, lines=[high] * 20, terminals=[None] * 20
    )
    pilot = StageDecoding(fitter, num_drafts=1)
    own.decode("The", pilot, sampling=sampling.replace(max_tokens=42), align=align)
    assert own.stats().num_forced == own.stats().num_segments == 60
    assert math.isnan(own.stats().reward_drift)
    assert warnings_in(caplog) == []
    own.generate("The", sampling=sampling, align=align)
    [message] = warnings_in(caplog)
    assert message.startswith("60 of 60 segments were forced (100.0%): ")


def test_acceptance_below_a_twentieth_of_two_hundred() -> None:
    ten = ended("", max_attempts=10)
    few = [
        text
        for text in messages_of([ten] * 19 + [ended("ab")] * 9)
        if "draws were accepted" in text
    ]
    assert few == []
    enough = [
        text
        for text in messages_of([ten] * 19 + [ended("ab")] * 10)
        if "draws were accepted" in text
    ]
    assert enough == []  # 10 of 200
    enough = [
        text
        for text in messages_of([ended("ab")] * 9 + [ten] * 20)
        if "draws were accepted" in text
    ]
    assert enough == ["9 of 209 draws were accepted (4.3%)"]


def test_repeats_are_counted_within_a_segment_only() -> None:
    # Three draws of one sure token each: two of them repeat the first. "a" comes again later.
    rollout = ended("", num_tokens=4, max_attempts=3)
    assert rollout.text == "baba"
    assert rollout.result().usage.num_repeated_draws == 8
    assert ended("ab", num_tokens=4).result().usage.num_repeated_draws == 0
    check = standard_checks()[-1]
    assert [check.observe(rollout) for _ in range(6)] == [None] * 6
    assert "56 of 56 draws repeat" in str(check.observe(rollout))


def test_a_reward_with_a_scale_is_no_guard() -> None:
    def said(*rewards: float, **settings: Any) -> str:
        align = AlignParams(preset="guard", segment_len=1, num_candidates=1, **settings)
        model = TabularModel("ab", lambda _: [0.5, 0.5])
        table = TableReward(dict(zip("ab", rewards, strict=True)))
        sampling = SamplingParams(max_tokens=1, temperature=1.0, top_k=None)
        rollout = make_rollout(align=align, sampling=sampling)
        for _ in stars([rollout], model, table):
            pass
        return str(GuardCheck().observe(rollout))

    assert said(-3.0, -3.0).startswith("the rewards of drafts, such as -3, are not between 0 and 1")
    assert said(4.5, 4.5).startswith("the rewards of drafts, such as 4.5, are not")
    assert said(0.0, 1.0) == said(0.2, 0.7) == "None"
    assert said(4.5, 4.5, threshold=1.0) == said(4.5, 4.5, on_exhausted="best") == "None"


def test_custom_checks_can_be_added(caplog: pytest.LogCaptureFixture) -> None:
    class Third:
        num_seen = 0

        def observe(self, rollout: Rollout) -> str | None:
            self.num_seen += 1
            return "100% of 3 {so far}" if self.num_seen >= 3 else None

    check = Third()
    diagnostics = Diagnostics([check])
    for _ in range(5):
        diagnostics.observe(ended("ab"))
    assert warnings_in(caplog) == ["100% of 3 {so far}"]
    assert check.num_seen == 3


def test_rates_without_observations_are_nan() -> None:
    assert math.isnan(EngineStats().forced_rate)
    assert EngineStats(num_segments=8, num_forced=2).forced_rate == 0.25


def test_first_drafts_that_end_the_answer_are_measured_by_their_own_line() -> None:
    """Endings earn 5 more here, as their own line knows."""
    model = TabularModel(("a", "b", "b."), lambda ids: (0.5, 0.0, 0.5))
    reward = TableReward({"": 0.0, "a": 1.0, "b": 5.0, "aa": 2.0, "ab": 6.0})
    plain = Line(intercept=1.0, slope=1.0, offset=-9.0, sigma=2.0)
    ending = plain.replace(intercept=5.0)
    for terminals, expected in (((ending,), {0.0}), ((), {0.0, 2.0})):
        schedule = CalibratedSchedule(stages=(plain,), terminals=terminals, segment_len=1)
        found = set()
        for seed in range(20):
            rollout = make_rollout(
                align=AlignParams(schedule=schedule),
                sampling=SamplingParams(max_tokens=2, temperature=1.0, top_k=None, stop="."),
                seed=seed,
            )
            list(stars([rollout], model, reward))
            found |= set(deviations(rollout))
        assert found == expected


@pytest.mark.slow
def test_rewards_outside_their_calibration_warn(
    own: StarsEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """Thresholds whose baseline lies two standard deviations above what drafts come to."""
    sampling = SamplingParams(seed=1, max_tokens=48, n=4, min_tokens=48)
    plain = own.generate("The", sampling=sampling, align=AlignParams(schedule=NoSchedule()))
    rewards = [s.attempts[0].reward for r in plain for s in r.segments]
    mean = sum(rewards) / len(rewards)
    sigma = (sum((r - mean) ** 2 for r in rewards) / len(rewards)) ** 0.5

    def drift(shift: float) -> float:
        line = Line(intercept=mean + shift * sigma, slope=0, offset=-9 * sigma, sigma=sigma)
        schedule = CalibratedSchedule(stages=(line,), segment_len=2)
        for _ in range(3):
            own.generate("The", sampling=sampling, align=AlignParams(schedule=schedule))
        return own.stats().reward_drift

    assert math.isnan(own.stats().reward_drift)
    assert abs(drift(0.0)) < 0.5
    assert own.stats().num_calibrated_drafts == 3 * 4 * 24
    assert not [text for text in warnings_in(caplog) if "calibrated" in text]
    assert drift(-4.0) == pytest.approx(2.0, abs=0.5)  # half of all were as expected
    [message] = [text for text in warnings_in(caplog) if "calibrated" in text]
    assert "standard deviations from what the calibrated thresholds expect" in message
    assert "Hint: call engine.recalibrate()" in message
