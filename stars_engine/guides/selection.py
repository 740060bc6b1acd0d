"""Choose the layer, the pooling, the strength and the shape of a head by folds of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stars_engine.calibration.over_prompts import Floats
from stars_engine.guides.fit import (
    NUM_FOLDS,
    STRENGTHS,
    Network,
    Ridge,
    calibrated,
    folds_of,
    linear,
    mlp,
)
from stars_engine.guides.samples import JudgedAnswer, ProgressCallback
from stars_engine.guides.states import States
from stars_engine.guides.statistics import line_of, within_correlation


@dataclass(frozen=True, slots=True)
class HeadChoice:
    """One way to fit a head, with its values on held-out prompts.

    Attributes:
        layer: Index of the hidden state.
        pooling: "last" or "mean".
        hidden: Width of the layer between; 0 for a linear head.
        strength: Ridge strength of a linear head.
        correlation: Within-prompt correlation on held-out prompts, mean over positions.
        values: `(rows,)`, by networks that were not fitted to the row's prompt.
    """

    layer: int
    pooling: str
    hidden: int
    strength: float
    correlation: float
    values: Floats


def described(candidate: HeadChoice) -> str:
    """Return a head in words."""
    shape = f"MLP of width {candidate.hidden}" if candidate.hidden else "linear"
    state = "running mean of states" if candidate.pooling == "mean" else "last state"
    return f"{shape}, layer {candidate.layer}, {state}"


@dataclass(frozen=True, slots=True)
class Data:
    """States with the scores of their answers.

    Attributes:
        states: The states.
        scores: `(rows,)`, of whole answers.
        prompts: `(rows,)`.
        folds: `(rows,)`.
        positions: Lengths at which correlations are measured.
    """

    states: States
    scores: Floats
    prompts: NDArray[np.int64]
    folds: NDArray[np.int64]
    positions: Sequence[int]

    @classmethod
    def of(
        cls, states: States, samples: Sequence[JudgedAnswer], positions: Sequence[int], seed: int
    ) -> Data:
        """Return the rows with the scores and prompts of their samples, in folds of prompts."""
        scores = np.array([sample.score for sample in samples], dtype=float)[states.samples]
        prompts = np.array([sample.prompt_index for sample in samples])[states.samples]
        folds = folds_of(prompts.tolist(), NUM_FOLDS, seed)
        return cls(states, scores, prompts, folds, positions)

    @property
    def groups(self) -> NDArray[np.int64]:
        """`(rows,)`: rows of one prompt at about the same position."""
        bucket = np.searchsorted(np.array(self.positions), self.states.num_tokens)
        return np.asarray(self.prompts * (len(self.positions) + 1) + bucket, dtype=np.int64)

    def correlations(self, values: Floats) -> list[float]:
        """Return the within-prompt correlation at each position."""
        found = []
        for size in self.positions:
            at = np.flatnonzero(self.states.num_tokens == size)
            found.append(within_correlation(values[at], self.scores[at], self.prompts[at]))
        return found

    def mean_correlation(self, values: Floats) -> float:
        """Return the mean over positions; nan counts as 0."""
        return float(np.mean(np.nan_to_num(self.correlations(values))))


def choose(
    data: Data,
    *,
    widths: Sequence[int],
    soft_beta: float | None,
    only_wide: bool = False,
    seed: int,
    progress: ProgressCallback,
) -> tuple[list[HeadChoice], Network]:
    """Return all candidates, the best first, and the best one's network fitted to all prompts."""
    keys = list(data.states.by_layer)
    total = len(keys) + sum(width > 0 for width in widths)
    candidates = []
    for index, (layer, pooling) in enumerate(keys):
        progress("fitting", index, total)
        candidates.append(_linear(data, layer, pooling))
    candidates.sort(key=lambda item: -item.correlation)
    best = candidates[0]
    for index, width in enumerate(width for width in widths if width > 0):
        progress("fitting", len(keys) + index, total)
        place = (best.layer, best.pooling)
        candidates.append(_mlp(data, place, width=width, seed=seed, soft_beta=soft_beta))
    # Of two that are level the smaller one, which generalizes better.
    margin = -10.0 if only_wide else 0.01
    candidates.sort(key=lambda item: -(item.correlation - (margin if item.hidden else 0.0)))
    progress("fitting", total, total)
    return candidates, _final(data, candidates[0], seed, soft_beta)


def _linear(data: Data, layer: int, pooling: str) -> HeadChoice:
    rows = data.states.by_layer[layer, pooling]
    ridge = Ridge(rows, data.scores, data.groups, data.folds)
    best: HeadChoice | None = None
    for strength in STRENGTHS:
        values = np.empty(len(rows))
        for fold in np.unique(data.folds).tolist():
            held = data.folds == fold
            raw = (rows @ ridge.solve(strength, without=fold).float()).double().numpy()
            slope, intercept = line_of(raw[~held], data.scores[~held])
            values[held] = slope * raw[held] + intercept
        candidate = HeadChoice(layer, pooling, 0, strength, data.mean_correlation(values), values)
        if best is None or candidate.correlation > best.correlation:
            best = candidate
    assert best is not None
    return best


def _mlp(
    data: Data, place: tuple[int, str], *, width: int, seed: int, soft_beta: float | None
) -> HeadChoice:
    rows = data.states.by_layer[place]
    values = np.empty(len(rows))
    for fold in np.unique(data.folds).tolist():
        held = data.folds == fold
        known, scores = rows[~held], data.scores[~held]
        network = mlp(
            known, scores, data.groups[~held], hidden=width, seed=seed, soft_beta=soft_beta
        )
        if soft_beta is None:
            network = calibrated(network, known, scores)
        values[held] = network(rows[held])
    return HeadChoice(*place, width, 0.0, data.mean_correlation(values), values)


def _final(data: Data, chosen: HeadChoice, seed: int, soft_beta: float | None) -> Network:
    rows = data.states.by_layer[chosen.layer, chosen.pooling]
    start = None
    if not chosen.hidden:
        ridge = Ridge(rows, data.scores, data.groups, data.folds)
        start = linear(ridge.solve(chosen.strength), rows, data.scores)
        if soft_beta is None:
            return start
    network = mlp(
        rows,
        data.scores,
        data.groups,
        hidden=chosen.hidden,
        seed=seed,
        soft_beta=soft_beta,
        start=start,
    )
    return network if soft_beta is not None else calibrated(network, rows, data.scores)
