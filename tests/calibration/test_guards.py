"""Rewards of few values: detected in the pilot's first stage, or declared by a preset."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from stars_engine import AlignParams, ConfigError, FunctionReward, StarsConfig, StarsEngine
from stars_engine.calibration.auto import calibrations_of
from stars_engine.calibration.fit import StageDrafts
from stars_engine.calibration.guards import guard_schedule, guard_values
from stars_engine.config.presets import preset


def drafts(rewards: list[float]) -> StageDrafts:
    table = np.array([rewards], dtype=float)
    return StageDrafts(np.zeros(1), table, np.zeros_like(table, dtype=bool))


def test_few_values_are_a_guard() -> None:
    assert guard_values(drafts([0, 1] * 16)) == [0.0, 1.0]
    assert guard_values(drafts([1] * 40)) == [1.0]
    assert guard_values(drafts([0, 1, 2, float("nan")] * 16)) == [0.0, 1.0, 2.0]
    assert guard_values(drafts([0, 1] * 8)) is None  # too few drafts to tell
    assert guard_values(drafts([0, 1, 2, 3] * 16)) is None


@pytest.mark.parametrize(
    ("values", "refused", "accepted"),
    [([0.0, 1.0], 0.0, 1.0), ([-2.0, 0.0, 3.0], 0.0, 3.0), ([1.0], 0.0, 1.0), ([0.0], -1.0, 0.0)],
)
def test_the_highest_value_alone_is_accepted(
    values: list[float], refused: float, accepted: float
) -> None:
    [line] = guard_schedule(values, AlignParams(), {}).stages
    assert refused < line.threshold(float("nan")) <= accepted


def test_the_preset() -> None:
    guard = AlignParams(preset="guard")
    assert guard == preset("guard") == StarsConfig(align="guard").align
    assert guard.schedule.value == 0.5
    assert guard.on_exhausted == "stop"
    assert AlignParams(preset="guard", threshold=0.9).schedule.value == 0.9
    assert AlignParams(preset="guard", fallback_text="No.").on_exhausted == "fallback"
    assert AlignParams.model_validate({"preset": "safe"}) == preset("safe")
    with pytest.raises(ConfigError, match="unknown preset 'no'"):
        AlignParams(preset="no")


def test_segments_of_the_preset_end_with_sentences() -> None:
    for given, expected in {
        (): ("sentence", 48, 4),
        (("segment_len", 24),): ("sentence", 24, 4),
        (("segment_len", 3),): ("sentence", 3, 1),
        (("segment_end", "sentence"), ("min_segment_len", 9)): ("sentence", 48, 9),
        (("segment_len", 8), ("segment_end", "length")): ("length", 8, 2),
    }.items():
        align = AlignParams(preset="guard", **dict(given))
        assert (align.segment_end, align.segment_len, align.shortest_segment) == expected
    with pytest.raises(ConfigError, match="segment_len"):
        AlignParams(preset="guard", segment_len="long")


@pytest.mark.slow
def test_the_engine_detects_a_guard_in_the_first_stage(
    engine: StarsEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """No draft with a forbidden word is kept, and no later stage is run."""

    def no_article(prompt: str, completion: str) -> float:
        return float("the" not in completion)

    config = StarsConfig(
        model="stars:embedded-lm", reward=FunctionReward(function=no_article), align="best"
    )
    with (
        caplog.at_level(logging.INFO, logger="stars_engine"),
        StarsEngine(config, model=engine.model) as own,
    ):
        results = own.generate(["The plot", "My wife and I"] * 3, max_tokens=48, seed=3)
        assert len(calibrations_of(own._runtime)._results) == 1
    assert "used as a guard" in caplog.text
    assert "stage 2" not in caplog.text
    for result in results:
        assert "the" not in result.text
        assert result.usage.num_forced == 0


@pytest.mark.parametrize(
    ("answer", "is_allowed"),
    [
        ("The desk was sent on 6 May and arrives within five days.", True),
        ("The desk was sent on 6 May 2023.", False),  # the year is not in the documents
        ("It was placed by Marta Keane.", True),
        ("It was placed by Peter.", False),
        ("Her address is marta.keane@", False),
        ("Call +353 1 555 0147.", False),
        ("I'm sorry, I cannot help.", False),
    ],
)
def test_the_guards_of_the_example(answer: str, *, is_allowed: bool) -> None:
    from examples.guards import DOCUMENTS, allowed

    assert allowed(f"{DOCUMENTS}\nWhen was the desk sent?", answer) == is_allowed
