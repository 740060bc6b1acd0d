"""The judge and other linear text models, against naive formulas and small data."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from training.judge import judge_figures, load_judge, read_sst2, train_judge
from training.linear import LinearClassifier

GOOD, BAD = ("lovely", "warm", "superb"), ("dull", "awful", "lame")
PLAIN = tuple(f"word{index}" for index in range(40))


def reviews(num: int, seed: int, length: int = 150) -> tuple[list[str], list[int]]:
    """Texts in which one word in ten speaks, and nine times in ten for the label."""
    rng = np.random.default_rng(seed)
    texts, labels = [], []
    for index in range(num):
        label = index % 2
        words = []
        for _ in range(length):
            kind = PLAIN
            if rng.random() < 0.1:
                kind = GOOD if (rng.random() < 0.9) == bool(label) else BAD
            words.append(str(rng.choice(kind)))
        texts.append(" ".join(words))
        labels.append(label)
    return texts, labels


@pytest.fixture(scope="module")
def judge() -> LinearClassifier:
    return train_judge(*reviews(160, 0), sentences=[("superb", 1), ("awful", 0)])


def test_logits_are_a_sum_over_words_and_pairs() -> None:
    texts, labels = reviews(40, 1, length=20)
    model = LinearClassifier.fit(texts, labels, strength=1.0)
    text = "lovely lovely word1"
    counts = Counter(["lovely", "lovely", "word1", "lovely lovely", "lovely word1"])
    known = {term: place for place, term in enumerate(model._terms)}
    values = {
        term: (1 + math.log(count)) * model._idf[known[term]]
        for term, count in counts.items()
        if term in known
    }
    norm = math.sqrt(sum(value**2 for value in values.values()))
    expected = model._bias + sum(
        value / norm * model._weights[known[term]] for term, value in values.items()
    )
    assert model.logits([text])[0] == pytest.approx(expected)
    assert model.logits([""])[0] == pytest.approx(model._bias)


def test_punctuation_and_negations_are_words() -> None:
    texts = ["it isn't good!", "it isn't good!", "good?", "good?"]
    model = LinearClassifier.fit(texts, [0, 0, 1, 1], strength=1.0)
    assert set(model._terms) == {"it", "isn't", "good", "!", "?"} | {
        "it isn't",
        "isn't good",
        "good !",
        "good ?",
    }


@pytest.mark.parametrize("bayes", [False, True])
def test_the_judge_learns_and_predicts(bayes: bool) -> None:
    model = LinearClassifier.fit(*reviews(120, 2), strength=1.0, bayes=bayes)
    texts, labels = reviews(80, 3)
    assert np.mean((model.logits(texts) > 0) == np.array(labels, bool)) > 0.9


def test_calibrated_probabilities_are_frequencies() -> None:
    # Short texts, so that much is left in doubt; a weak penalty, so that the fit is too sure.
    model = LinearClassifier.fit(*reviews(300, 4, length=12), strength=1e4)
    texts, labels = reviews(2000, 5, length=12)
    held, held_labels = reviews(2000, 6, length=12)
    calibrated = model.calibrated(held, held_labels)

    def log_loss(found: LinearClassifier) -> float:
        return float(np.logaddexp(0, -found.logits(texts) * (2 * np.array(labels) - 1)).mean())

    assert log_loss(calibrated) < 0.8 * log_loss(model)
    np.testing.assert_array_equal(
        np.argsort(calibrated.logits(texts[:50])), np.argsort(model.logits(texts[:50]))
    )


def test_a_judge_survives_a_file(judge: LinearClassifier, tmp_path: Path) -> None:
    judge.save(tmp_path / "judge.npz")
    texts, _ = reviews(20, 7)
    np.testing.assert_array_equal(load_judge(tmp_path).logits(texts), judge.logits(texts))


def test_a_missing_judge_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"Hint: python -m training\.judge"):
        load_judge(tmp_path)


def test_figures_of_a_judge(judge: LinearClassifier) -> None:
    texts, labels = reviews(60, 8)
    figures = judge_figures(judge, texts, labels)
    assert figures["whole reviews"]["texts"] == figures["excerpts of 128 words"]["texts"] == 60
    assert figures["whole reviews"]["accuracy"] > 0.9
    signed = judge.logits(texts) * (2 * np.array(labels) - 1)
    assert figures["whole reviews"]["log_loss"] == pytest.approx(np.log1p(np.exp(-signed)).mean())
    assert train_judge(*reviews(160, 0)).logits(texts).tolist() != judge.logits(texts).tolist()


def test_sst2_is_read(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("a joy\t1\nsentence\tlabel\nno joy\t0\n")
    assert read_sst2(tmp_path) == [("a joy", 1), ("no joy", 0)]
