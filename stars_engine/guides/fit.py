"""Fit value heads to hidden states and scores: functions of arrays.

Rows are states at some positions of answers, the target is the score of the whole answer. What
counts is to tell answers to one prompt apart, so a linear head is fitted to what rows and scores
have beyond the mean of their prompt. Scale and offset are fitted afterwards to the scores
themselves, so that values are expected scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from stars_engine.calibration.over_prompts import Floats
from stars_engine.guides.statistics import line_of

NUM_FOLDS = 5
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of ridge, over the mean variance of a feature
_EPOCHS, _BATCH, _RATE = 12, 512, 2e-3


@dataclass(frozen=True, slots=True)
class Network:
    """Linear layers with ReLU between them.

    Attributes:
        weights: `(out, in)` of each.
        biases: `(out,)` of each.
    """

    weights: list[torch.Tensor]
    biases: list[torch.Tensor]

    def __call__(self, rows: torch.Tensor) -> Floats:
        """Return `(rows,)` values."""
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            rows = torch.nn.functional.linear(rows.relu() if index else rows, weight, bias)
        return np.asarray(rows[:, 0].double().numpy())

    def scaled(self, slope: float, intercept: float) -> Network:
        """Return a network whose values are multiplied and shifted."""
        weights, biases = list(self.weights), list(self.biases)
        weights[-1] = weights[-1] * slope
        biases[-1] = biases[-1] * slope + intercept
        return Network(weights, biases)


def centred(values: torch.Tensor, groups: NDArray[np.int64]) -> torch.Tensor:
    """Subtract the mean of each group from `(rows, ...)` values."""
    _, index = np.unique(groups, return_inverse=True)
    at = torch.as_tensor(index)
    counts = torch.bincount(at).to(values.dtype)
    sums = torch.zeros(len(counts), *values.shape[1:], dtype=values.dtype)
    sums.index_add_(0, at, values)
    shape = (-1, *[1] * (values.dim() - 1))
    return values - (sums / counts.reshape(shape))[at]


class Ridge:
    """Ridge regression within groups, for many strengths and for subsets of folds.

    Args:
        rows: `(rows, features)`.
        scores: `(rows,)`.
        groups: `(rows,)`, within which both are centred.
        folds: `(rows,)`, the fold of each group.
    """

    def __init__(
        self,
        rows: torch.Tensor,
        scores: Floats,
        groups: NDArray[np.int64],
        folds: NDArray[np.int64],
    ) -> None:
        inner, target = centred(rows.double(), groups), centred(torch.as_tensor(scores), groups)
        names = np.unique(folds).tolist()
        picks = {fold: torch.as_tensor(np.flatnonzero(folds == fold)) for fold in names}
        self._grams = {fold: inner[at].T @ inner[at] for fold, at in picks.items()}
        self._products = {fold: inner[at].T @ target[at] for fold, at in picks.items()}

    def solve(self, strength: float, *, without: int | None = None) -> torch.Tensor:
        """Return `(features,)` weights, fitted to all folds but one."""
        folds = [fold for fold in self._grams if fold != without]
        gram = torch.stack([self._grams[fold] for fold in folds]).sum(0)
        product = torch.stack([self._products[fold] for fold in folds]).sum(0)
        penalty = strength * gram.diagonal().mean().clamp(min=1e-12)
        gram.diagonal().add_(penalty)
        return torch.cholesky_solve(product[:, None], torch.linalg.cholesky(gram))[:, 0]


def linear(weights: torch.Tensor, rows: torch.Tensor, scores: Floats) -> Network:
    """Return a linear network whose values are expected scores."""
    network = Network([weights.float()[None]], [torch.zeros(1)])
    return calibrated(network, rows, scores)


def calibrated(network: Network, rows: torch.Tensor, scores: Floats) -> Network:
    """Scale and shift a network so that its values are expected scores of these rows."""
    return network.scaled(*line_of(network(rows), scores))


def mlp(
    rows: torch.Tensor,
    scores: Floats,
    groups: NDArray[np.int64],
    *,
    hidden: int,
    seed: int,
    soft_beta: float | None = None,
    start: Network | None = None,
) -> Network:
    """Fit a network by gradient descent, on standardized states.

    Args:
        rows: `(rows, features)`.
        scores: `(rows,)`.
        groups: `(rows,)`; without `soft_beta`, deviations from the mean of a group are fitted.
        hidden: Width of the layer between; 0 for a linear network.
        seed: Seed of the first weights and of the batches.
        soft_beta: Fit the soft value beta * log E exp(score / beta) instead of the mean.
        start: A linear network to start from, with `hidden` 0.
    """
    generator = torch.Generator().manual_seed(seed)
    mean, std = rows.mean(0), rows.std(0).clamp(min=1e-6)
    target = torch.as_tensor(scores, dtype=torch.float32)
    if soft_beta is None:
        target = centred(target, groups)
    scale = target.std().clamp(min=1e-9)
    centre = target.mean()
    sizes = [rows.shape[1], *([hidden] if hidden else []), 1]
    weights = [
        torch.randn(out, size, generator=generator) / size**0.5 * (0.1 if out == 1 else 1.0)
        for size, out in pairwise(sizes)
    ]
    biases = [torch.zeros(size) for size in sizes[1:]]
    if start is not None:
        weights = [start.weights[0] * std / scale]
        biases = [(start.biases[0] + start.weights[0] @ mean - centre) / scale]
    parameters = [part.requires_grad_() for part in (*weights, *biases)]
    optimizer = torch.optim.AdamW(
        parameters, lr=_RATE if start is None else _RATE / 10, weight_decay=0.05
    )
    steps = _EPOCHS * max(1, len(rows) // _BATCH)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(_EPOCHS):
        order = torch.randperm(len(rows), generator=generator)
        for batch in torch.split(order, _BATCH):
            inner = (rows[batch] - mean) / std
            for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
                inner = torch.nn.functional.linear(inner.relu() if index else inner, weight, bias)
            gap = (target[batch] - centre) / scale - inner[:, 0]
            if soft_beta is None:
                loss = gap.square().mean()
            else:
                # Its minimum is where the mean of exp(gap / beta) is 1: the soft value.
                part = (gap * scale / soft_beta).clamp(max=20.0)
                loss = (part.exp() - part - 1).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            decay.step()
    first, shift = weights[0].detach() / std, biases[0].detach()
    shift = shift - first @ mean
    network = Network(
        [first, *(part.detach() for part in weights[1:])],
        [shift, *(part.detach() for part in biases[1:])],
    )
    network = network.scaled(float(scale), float(centre))
    if soft_beta is None:
        return network
    # The best offset is known exactly: that at which the mean of exp(gap / beta) is 1.
    gaps = (scores - network(rows)) / soft_beta
    top = float(gaps.max())
    offset = soft_beta * (top + float(np.log(np.exp(gaps - top).mean())))
    return network.scaled(1.0, offset)


def folds_of(prompts: Sequence[int], count: int, seed: int) -> NDArray[np.int64]:
    """Return the fold of each row; rows of one prompt share theirs."""
    names, index = np.unique(prompts, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    return np.asarray(order[index] % min(count, len(names)), dtype=np.int64)
