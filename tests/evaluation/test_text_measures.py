"""Measures of texts against naive formulas."""

from __future__ import annotations

import math
from collections import Counter
from random import Random

import pytest

from stars_engine.evaluation.text_measures import distinct, grams, repetition, self_bleu


def test_distinct_pairs() -> None:
    assert distinct(["a b c", "A b d"], 2) == 3 / 4
    assert distinct(["a b a"], 1) == 2 / 3
    assert math.isnan(distinct(["a", ""], 2))


def test_repetition_counts_what_occurred_before() -> None:
    assert repetition("a b a b a b", n=2) == 3 / 5  # ab ba ab ba ab
    assert repetition("a b", n=4) == 0


def naive_bleu(own: list[str], others: list[list[str]]) -> float:
    """BLEU-4 of Papineni et al. with all others as references; half a match for none."""
    log_precision, used = 0.0, 0
    for n in range(1, 5):
        counts = Counter(grams(own, n))
        if not counts:
            continue
        matched = sum(
            min(count, max(Counter(grams(other, n))[gram] for other in others))
            for gram, count in counts.items()
        )
        log_precision += math.log((matched or 0.5) / counts.total())
        used += 1
    closest = min(map(len, others), key=lambda length: (abs(length - len(own)), length))
    penalty = min(0.0, 1 - closest / len(own))
    return math.exp(penalty + log_precision / used)


def test_self_bleu_is_the_mean_bleu_with_all_others() -> None:
    random = Random(5)
    bodies = [[random.choice("abcde") for _ in range(random.randint(2, 12))] for _ in range(9)]
    expected = [
        naive_bleu(body, [other for j, other in enumerate(bodies) if j != i])
        for i, body in enumerate(bodies)
    ]
    found = self_bleu([" ".join(body) for body in bodies])
    assert found == pytest.approx(sum(expected) / len(expected))


def test_equal_texts_have_a_self_bleu_of_one() -> None:
    assert self_bleu(["one two three four five"] * 3) == pytest.approx(1)
    assert math.isnan(self_bleu(["alone", ""]))
