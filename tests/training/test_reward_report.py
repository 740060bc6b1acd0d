"""Figures of the reward model against plain forwards and formulas."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from stars_engine import StarsEngine
from stars_engine.loading.sources import tokenizer_files
from stars_engine.types import RewardInput, RewardPrompt
from tests.support.shared_files import shared_model
from training.pieces import beginning
from training.prefixes import (
    accuracy,
    calibration,
    lead,
    rank_correlations,
    read_prefixes,
)
from training.reward_report import BORDERS, EMBEDDED_REWARD, kept, report, tables

TEXTS = (
    "It's a great film, isn't it?\n\nYes. One of the best I have ever seen, and I saw it twice!",
    "Awful.",
    "The plot was thin, the acting was poor; still, Mr. O'Neil's camera is a wonder to behold.",
)
LENGTHS = (1, 3, 8, 15, None)


def check_against_plain_forwards(directory: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(directory, **tokenizer_files(str(directory)))
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)
    logits = read_prefixes(directory, TEXTS, LENGTHS)
    for row, text in enumerate(TEXTS):
        for column, length in enumerate(LENGTHS):
            ids = tokenizer(beginning(text, length), return_tensors="pt")
            with torch.inference_mode():
                expected = model(**ids).logits[0, 0].item()
            assert logits[row, column] == pytest.approx(expected, abs=1e-4)


def test_prefixes_have_the_rewards_they_have_alone() -> None:
    check_against_plain_forwards(EMBEDDED_REWARD)


def test_prefixes_whose_ids_depend_on_later_text_have_the_rewards_they_have_alone() -> None:
    check_against_plain_forwards(Path(shared_model("rm-sentiment-656K")))


def test_prefixes_are_read_as_the_engine_does(engine: StarsEngine) -> None:
    read = read_prefixes(EMBEDDED_REWARD, TEXTS, (8, None))
    for row, text in enumerate(TEXTS):
        for column, length in enumerate((8, None)):
            item = RewardInput(RewardPrompt(beginning(text, length)), "", ())
            [score] = engine.reward.score([item])
            assert read[row, column] == pytest.approx(score.value, abs=1e-3)


def test_long_texts_are_cut_at_the_context() -> None:
    long = " ".join(TEXTS * 60)
    [[cut]] = read_prefixes(EMBEDDED_REWARD, [long], [None], context=64)
    tokenizer = AutoTokenizer.from_pretrained(
        EMBEDDED_REWARD, **tokenizer_files(str(EMBEDDED_REWARD))
    )
    ids = tokenizer(long, verbose=False)["input_ids"][-63:]
    [[expected]] = read_prefixes(EMBEDDED_REWARD, [tokenizer.decode(ids)], [None])
    assert cut == pytest.approx(expected, abs=1e-4)


def test_accuracy_is_by_sign() -> None:
    logits = np.array([[1.0, -1.0], [2.0, -0.5]])
    assert accuracy(logits, [1, 0]).tolist() == [[True, False], [False, True]]
    assert accuracy(logits[:, 0], [1, 0]).tolist() == [True, False]


def test_calibration_of_true_probabilities_and_of_exaggeration() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=1.5, size=200_000)
    labels = rng.random(200_000) < expit(logits)
    true, loud = calibration(logits, labels), calibration(3 * logits, labels)
    assert true["expected_calibration_error"] < 0.01
    assert loud["expected_calibration_error"] > 0.1
    assert loud["log_loss"] > true["log_loss"]
    assert sum(at["texts"] for at in true["curve"]) == 200_000
    assert len(true["curve"]) == 10


def test_calibration_by_hand() -> None:
    logits = np.log(np.array([0.9, 0.9, 0.15, 0.12]) / np.array([0.1, 0.1, 0.85, 0.88]))
    found = calibration(logits + 1e-9, [1, 0, 0, 0])
    assert found["expected_calibration_error"] == pytest.approx(0.5 * 0.4 + 0.5 * 0.135)
    assert [at["texts"] for at in found["curve"]] == [2, 2]


def test_a_certain_wrong_prediction_has_a_finite_loss() -> None:
    found = calibration(np.array([1000.0, -1000.0]), [0, 1])
    assert found["log_loss"] == pytest.approx(1000)
    assert found["expected_calibration_error"] == pytest.approx(1)


def test_ranks_do_not_see_scale() -> None:
    final = np.arange(20.0)
    columns = np.stack([np.exp(final), -final, final], axis=1)
    assert rank_correlations(columns) == pytest.approx([1, -1])


def test_lead_is_paired() -> None:
    ours = np.array([True] * 60 + [False] * 40)
    theirs = np.array([True] * 50 + [False] * 50)
    value, half = lead(ours, theirs)
    assert value == pytest.approx(0.1)
    assert half == pytest.approx(1.96 * np.sqrt(0.1 * 0.9 / 99))
    assert lead(ours, ours) == (0, 0)


def test_report_takes_the_better_baseline_at_each_length() -> None:
    rng = np.random.default_rng(1)
    labels = [0, 1] * 50
    truth = 2 * np.array(labels)[:, None] - 1

    def model(noise: list[float]) -> np.ndarray:
        return truth + rng.normal(size=(100, 9)) * np.array(noise)

    rising, falling = np.linspace(0.1, 4, 9).tolist(), np.linspace(4, 0.1, 9).tolist()
    logits = {
        "reward model": model([0.5] * 9),
        "linear, a": model(rising),
        "linear, b": model(falling),
    }
    texts = ["word " * (200 if index % 4 else 20) for index in range(100)]
    figures = json.loads(json.dumps(report(logits, texts, labels)))
    assert figures["reviews_of_more_than_128_words"] == 75
    first, second = (figures["accuracy"][f"linear, {name}"] for name in "ab")
    assert first[0] > second[0]
    assert first[-1] < second[-1]
    assert figures["accuracy"]["linear, the better"] == np.maximum(first, second).tolist()
    assert figures["prefix_words"] == ["16", "32", "64", "128", "whole"]
    assert len(figures["spearman_with_final"]["reward model"]) == len(BORDERS)
    shown = tables(figures)
    assert "| linear, the better |" in shown
    assert "| lead over linear, the better |" in shown


def test_cached_scores_are_used_for_the_same_model_only(tmp_path: Path) -> None:
    values = iter(np.arange(3.0))

    def read() -> np.ndarray:
        return np.array([next(values)])

    assert kept(tmp_path, ["a"], ["text"], read).tolist() == [0]
    assert kept(tmp_path, ["a"], ["text"], read).tolist() == [0]
    assert kept(tmp_path, ["b"], ["text"], read).tolist() == [1]
    assert kept(tmp_path, ["a"], ["other"], read).tolist() == [2]
