"""The training recipe of the embedded pair, where a mistake would go unnoticed."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from training.data import epoch
from training.ngram import NgramModel
from training.optim import orthogonalised
from training.reward_head import Weights
from training.runs import Plan, train
from training.teaching import balanced, windows

STREAM = np.random.default_rng(0).integers(0, 5, 3000)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_an_ngram_model_sums_to_one(order: int) -> None:
    model = NgramModel(STREAM, vocab_size=6, order=order)  # token 5 never occurs
    for context in (STREAM[:8], np.array([5, 5, 1]), np.array([3])):
        total = sum(2 ** model.log2_probs(np.append(context, token))[-1] for token in range(6))
        assert total == pytest.approx(1)


def test_an_ngram_model_equals_kneser_ney_by_formula() -> None:
    ids = STREAM[:300]
    model = NgramModel(ids, vocab_size=5, order=2)
    pairs = Counter(zip(ids.tolist(), ids[1:].tolist(), strict=False))
    preceded = Counter(token for _, token in pairs)

    def discounts(counts: list[int]) -> list[float]:
        n = [max(1, counts.count(r)) for r in (1, 2, 3, 4)]
        base = n[0] / (n[0] + 2 * n[1])
        found = [(r + 1) - (r + 2) * base * n[r + 1] / n[r] for r in range(3)]
        return [min(max(d, 0.05), r + 1.0) for r, d in enumerate(found)]

    low, high = discounts(list(preceded.values())), discounts(list(pairs.values()))

    def below(token: int) -> float:
        kept = preceded[token] - low[min(preceded[token], 3) - 1]
        taken = sum(low[min(count, 3) - 1] for count in preceded.values())
        return (kept + taken / 5) / sum(preceded.values())

    for (context, token), count in pairs.items():
        followers = [c for (first, _), c in pairs.items() if first == context]
        taken = sum(high[min(c, 3) - 1] for c in followers)
        wanted = (count - high[min(count, 3) - 1] + taken * below(token)) / sum(followers)
        assert 2 ** model.log2_probs(np.array([context, token]))[0] == pytest.approx(wanted)


def test_an_epoch_has_each_row_once_within_the_budget() -> None:
    rows = [[0] * int(length) for length in np.random.default_rng(1).integers(1, 60, 5000)]
    groups = list(epoch(rows, num_tokens=256, seed=0))
    assert sorted(index for group in groups for index in group) == list(range(len(rows)))
    assert all(len(group) * max(len(rows[i]) for i in group) <= 256 for group in groups)
    assert groups == list(epoch(rows, num_tokens=256, seed=0))
    assert groups != list(epoch(rows, num_tokens=256, seed=1))


@pytest.mark.parametrize("shape", [(3, 8, 20), (2, 20, 8)])
def test_updates_are_orthogonalised(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalised(matrices))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_an_interrupted_run_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    def run(num_batches: int | None, checkpoint: Path) -> nn.Module:
        torch.manual_seed(0)
        model = nn.ModuleDict({"layers": nn.Linear(4, 4), "head": nn.Linear(4, 1)})

        def loss_of(batch: torch.Tensor) -> tuple[torch.Tensor, float]:
            return model["head"](model["layers"](batch).tanh()).square().sum(), len(batch)

        batches = torch.randn(240, 3, 4, generator=torch.Generator().manual_seed(1))
        plan = Plan(num_steps=120, lr=0.01, micro_tokens=0, accumulate=2, seed=0)
        lines: list[str] = []
        train(
            model,
            islice(batches, num_batches),
            loss_of,
            plan,
            checkpoint=checkpoint,
            log=lines.append,
        )
        return model

    whole = run(None, tmp_path / "whole.pt")
    run(130, tmp_path / "cut.pt")  # ends after step 65; the checkpoint is of step 50
    resumed = run(None, tmp_path / "cut.pt")
    for first, second in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(first, second)


def test_prefixes_have_the_weights_of_the_recipe() -> None:
    weights = Weights(rise=4, fall=8, last=2.0).of(torch.tensor([3, 12]), width=12)
    wanted = [min(t / 4, 1) / (1 + t / 8) for t in range(12)]
    assert weights[0].tolist() == pytest.approx([*wanted[:2], wanted[2] + 2, *[0] * 9])
    assert weights[1].tolist() == pytest.approx([*wanted[:11], wanted[11] + 2])


def test_a_long_review_is_read_at_both_ends() -> None:
    assert windows([1, 5, 6], 3) == [[1, 5, 6]]
    assert windows([1, 5, 6, 7, 8], 3) == [[1, 5, 6], [1, 7, 8]]


def test_predictions_are_balanced_between_good_and_bad() -> None:
    found = np.array([0.9, 0.8, -0.2, 0.7, -0.4, 0.95])
    assert balanced(found) == [0, 1, 2, 4]
