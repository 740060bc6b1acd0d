"""The safety rewards: no copies between parts, training that learns, correct figures."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from tests.support.shared_files import shared_data
from training.reward_head import load_with_head
from training.safety import figures, harmlessness, process, protocol, toxicity
from training.safety.harmlessness_data import Pair, folds, read_pairs
from training.safety.linear import LinearRegressor, bag_of_words
from training.safety.splits import deal, groups, runs
from training.safety.toxicity_data import SHARES, read_rows, split_rows

LM = Path(__file__).parents[2] / "stars_engine" / "embedded" / "lm"


def shared_runs(parts: Sequence[Sequence[str]], length: int) -> int:
    """How many runs of words are in more than one part."""
    found = [set().union(*(runs(text, length) for text in texts)) for texts in parts]
    return sum(len(a & b) for a, b in itertools.combinations(found, 2))


def test_texts_that_share_a_run_of_words_are_one_group() -> None:
    texts = ["a b c d", "x b c d y", "D, y! z", "q r", "q  R.", "a b", ""]
    assert groups(texts, run_words=3) == [[0, 1], [2], [3, 4], [5], [6]]
    assert groups([*texts, "c d y then d y z"], run_words=3)[0] == [0, 1, 2, 7]


def test_groups_are_assigned_whole_and_each_index_once() -> None:
    grouped = [[0, 1, 2, 3], *([i] for i in range(4, 40))]
    parts = deal(grouped, {"a": 0.6, "b": 0.3, "c": 0.1}, seed=3)
    assert {name: len(indices) for name, indices in parts.items()} == {"a": 24, "b": 12, "c": 4}
    assert sorted(itertools.chain(*parts.values())) == list(range(40))
    assert len([name for name, indices in parts.items() if set(indices) & {0, 1, 2, 3}]) == 1
    assert parts != deal(grouped, {"a": 0.6, "b": 0.3, "c": 0.1}, seed=4)
    with pytest.raises(ValueError, match="add up to 0"):
        deal(grouped, {"a": 0.5, "b": 0.25}, seed=3)


def test_no_toxicity_part_shares_five_words_in_a_row_with_another() -> None:
    rows = read_rows(shared_data("toxicity/realtoxicityprompts.jsonl"))
    parts = split_rows(rows, seed=1)
    assert sum(map(len, parts.values())) == len(rows) > 3900
    for name, share in SHARES.items():
        assert len(parts[name]) == pytest.approx(share * len(rows), abs=5)
    texts = [[row.prompt + row.continuation for row in part] for part in parts.values()]
    assert shared_runs(texts, 5) == 0
    assert all(0 <= r.prompt_toxicity <= 1 and 0 <= r.continuation_toxicity <= 1 for r in rows)
    # Rows dealt without regard to copies do share runs: the check above can fail.
    shuffled = random.Random(0).sample(rows, len(rows))
    halves = [[r.prompt + r.continuation for r in shuffled[i::2]] for i in (0, 1)]
    assert shared_runs(halves, 5) > 0


def test_no_fold_of_pairs_shares_ten_words_in_a_row_with_another() -> None:
    pairs = read_pairs(shared_data("hh-rlhf/harmless-base.jsonl.gz"))
    dealt = folds(pairs, seed=1)
    assert sum(map(len, dealt)) == len(pairs) == 1599  # one has two different conversations
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    texts = [[f"{p.context}{p.chosen}\n{p.rejected}" for p in fold] for fold in dealt]
    assert shared_runs(texts, 10) == 0
    assert all(p.context.endswith("\n\nAssistant:") and p.chosen != p.rejected for p in pairs)


def test_a_pair_is_truncated_around_the_start_of_the_answer() -> None:
    tokenizer = AutoTokenizer.from_pretrained(LM)
    context = "\n\nHuman: " + "one more thing " * 50 + "\n\nAssistant:"
    pair = Pair(context, " I would rather not.", " I would love to.")
    encoded = harmlessness.EncodedPair(pair, tokenizer)
    good, bad = encoded.sides
    head = tokenizer.encode(context, add_special_tokens=False)[-harmlessness.CONTEXT_LEN :]
    assert good[: encoded.start] == bad[: encoded.start] == [tokenizer.bos_token_id, *head]
    assert tokenizer.decode(good[encoded.start : -1]) == pair.chosen
    assert good[: encoded.differs] == bad[: encoded.differs]
    assert good[encoded.differs] != bad[encoded.differs]
    assert tokenizer.decode(good[encoded.start : encoded.differs]) == " I would"
    longer = Pair(context, " word" * 200 + " a", " word" * 200 + " b")
    alike = harmlessness.EncodedPair(longer, tokenizer)
    assert alike.differs == min(map(len, alike.sides))  # nothing to learn within the cut


@pytest.mark.slow
def test_the_toxicity_reward_learns_from_scores_and_from_prefixes() -> None:
    rng = random.Random(0)
    neutral = ["the", "film", "was", "seen", "by", "a", "man", "in", "town", "on", "that", "day"]
    texts, scores = [], []
    for index in range(64):
        marked = index % 2
        sentence = rng.sample(neutral, 6)
        sentence.insert(2, "horrible" if marked else "lovely")
        texts.append(" " + " ".join(sentence))
        scores.append(0.9 if marked else 0.1)
    model, tokenizer = load_with_head(LM)
    rows = toxicity.encode(texts, tokenizer)
    untrained = process.all_logits(model, rows[:2])
    assert all(value == 0 for row in untrained for value in row)  # a head of zeros
    loss = toxicity.train(model, rows, scores, num_steps=40, seed=1, log=lambda _: None)
    assert loss < 0.6 < math.log(2)
    values = process.all_logits(model, rows)
    for place in (6, -1):  # a prefix that holds the word, and the end
        predicted = np.array([row[place] for row in values])
        assert figures.auc(-predicted, np.array(scores)) > 0.95


@pytest.mark.slow
def test_the_harmlessness_reward_learns_which_of_two_is_preferred() -> None:
    rng = random.Random(0)
    words = ["a", "plan", "for", "the", "house", "and", "garden", "of", "my", "old", "friend"]
    pairs = []
    for _ in range(48):
        rest = " ".join(rng.sample(words, 6))
        pairs.append(Pair("\n\nHuman: tell me\n\nAssistant:", f" No, {rest}", f" Yes, {rest}"))
    model, tokenizer = load_with_head(LM)
    encoded = [harmlessness.EncodedPair(pair, tokenizer) for pair in pairs]
    loss = harmlessness.train(model, encoded, num_steps=30, seed=1, log=lambda _: None)
    assert loss < math.log(2) - 0.05
    predicted = harmlessness.verdicts(model, encoded)
    assert predicted["end"].mean() > 0.95
    assert np.isnan(predicted["32"]).all()  # no answer is that long
    swapped = [Pair(p.context, p.rejected, p.chosen) for p in pairs]
    backwards = [harmlessness.EncodedPair(pair, tokenizer) for pair in swapped]
    assert harmlessness.verdicts(model, backwards)["end"].mean() < 0.05
    assert harmlessness.linear_verdicts(pairs, pairs).mean() > 0.95
    assert harmlessness.shorter_verdicts([Pair("", "a", "bc"), Pair("", "a", "b")]).tolist() == [
        1,
        0.5,
    ]


def test_logits_of_a_row_do_not_depend_on_its_neighbours() -> None:
    model, tokenizer = load_with_head(LM)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.score.weight)
    model.eval()
    rows = toxicity.encode(
        [" a short one", " one that is a good deal longer than the other"], tokenizer
    )
    together = process.all_logits(model, rows)
    for row, values in zip(rows, together, strict=True):
        assert values == pytest.approx(process.all_logits(model, [row])[0], abs=1e-4)


def test_the_linear_model_estimates_probabilities() -> None:
    texts = ["blue sea", "blue sky", "grey sea", "grey sky"] * 20
    scores = [0.8, 0.8, 0.3, 0.3] * 20
    predicted = LinearRegressor(bag_of_words(), strength=100).fit(texts, scores).predict(texts[:4])
    assert predicted == pytest.approx(scores[:4], abs=0.02)


def test_figures_of_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "NUM_RESAMPLES", 200)
    scores = np.linspace(0, 1, 50)
    row = figures.beside({"right": scores, "wrong": -scores}, scores)
    assert row["num"] == 50
    assert row["right"]["auc"] == [1, 1, 1]
    assert row["right"]["spearman"] == pytest.approx([1, 1, 1])
    assert row["wrong"]["auc"] == [0, 0, 0]
    assert row["right - wrong"]["spearman"] == pytest.approx([2, 2, 2])
    assert math.isnan(figures.auc(scores, np.zeros(50)))
    mean, low, high = figures.mean_interval(scores)
    assert mean == pytest.approx(0.5)
    assert 0.35 < low < 0.45
    assert 0.55 < high < 0.65
    assert "| 8 | 50 | 1.000 [1.000, 1.000] |" in figures.shown([{"tokens": 8, **row}])


def test_best_of_n_equals_the_best_of_its_groups() -> None:
    guide = np.array([[3.0, 1.0, 2.0, -np.inf]])
    judged = np.array([[0.1, 0.9, 0.6, 0.3]])
    plain = protocol.best_of(1, guide, judged, 4)
    assert {name: float(value[0]) for name, value in plain.items()} == {
        "guide": 2.0,
        "mean": pytest.approx(0.475),
        "share": 0.5,
        "maximum": 0.9,
        "any": 1.0,
    }
    # Two groups of two: the best overall always wins its group, the one without a reward never
    # does; the other winner is the second, or the third where the two best met.
    pairs = protocol.best_of(2, guide, judged, 2)
    share_of_meetings = (pairs["guide"][0] - 2.5) / -0.5
    assert share_of_meetings == pytest.approx(1 / 3, abs=0.2)
    expected = (1 - share_of_meetings) * (0.1 + 0.6) / 2 + share_of_meetings * (0.1 + 0.9) / 2
    assert pairs["mean"][0] == pytest.approx(expected)
    assert protocol.best_of(4, guide, judged, 1)["mean"][0] == pytest.approx(0.1)
    with pytest.raises(ValueError, match="needs 6 plain ones"):
        protocol.best_of(3, guide, judged, 2)


@pytest.mark.parametrize(
    ("times", "expected"), [(0.9, 4.0), (1.0, 4.0), (1.5, 3.0), (3.0, 1.0), (7.0, 1.0)]
)
def test_equal_token_budgets_lie_between_whole_n(times: float, expected: float) -> None:
    curve = {n: {"mean": np.array([value])} for n, value in ((1, 4.0), (2, 2.0), (3, 1.0))}
    assert protocol.equal_tokens(times, curve)["mean"][0] == expected
