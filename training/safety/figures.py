"""Measure how well estimates rank scores, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

NUM_RESAMPLES = 1000


def mean_interval(values: np.ndarray) -> list[float]:
    """Return the mean of independent values and its 95% bootstrap interval."""
    picks = np.random.default_rng(0).integers(len(values), size=(NUM_RESAMPLES, len(values)))
    low, high = np.percentile(values[picks].mean(1), (2.5, 97.5))
    return [float(values.mean()), float(low), float(high)]


def auc(values: np.ndarray, scores: np.ndarray) -> float:
    """Return the area under the ROC curve for scores above 0.5; NaN if all are on one side."""
    labels = scores > 0.5
    return float(roc_auc_score(labels, values)) if 0 < labels.sum() < len(labels) else float("nan")


def rank_correlation(values: np.ndarray, scores: np.ndarray) -> float:
    """Return Spearman's correlation."""
    return float(spearmanr(values, scores).statistic)


def beside(estimates: Mapping[str, np.ndarray], scores: np.ndarray) -> dict[str, Any]:
    """Return AUC and Spearman of each estimate, and the first's lead over each other one."""
    result: dict[str, Any] = {"num": len(scores)}
    for figure, measure in (("auc", auc), ("spearman", rank_correlation)):
        generator = np.random.default_rng(0)
        draws = [generator.integers(len(scores), size=len(scores)) for _ in range(NUM_RESAMPLES)]
        draws.insert(0, np.arange(len(scores)))  # the sample itself
        found = {
            name: np.array([measure(values[draw], scores[draw]) for draw in draws])
            for name, values in estimates.items()
        }
        first, *others = estimates
        found |= {f"{first} - {other}": found[first] - found[other] for other in others}
        for name, (value, *resampled) in found.items():
            low, high = np.nanpercentile(resampled, (2.5, 97.5))
            result.setdefault(name, {})[figure] = [float(value), float(low), float(high)]
    return result


def shown(table: Sequence[Mapping[str, Any]]) -> str:
    """Return rows of `beside` as a Markdown table."""
    first = next(iter(table))
    heads = [
        (name, figure)
        for name, value in first.items()
        if isinstance(value, Mapping)
        for figure in value
    ]
    lines = [
        "| tokens | texts | " + " | ".join(f"{name}, {figure}" for name, figure in heads) + " |",
        "|---|---:" + "|---" * len(heads) + "|",
    ]
    for row in table:
        cells = ["{:.3f} [{:.3f}, {:.3f}]".format(*row[name][figure]) for name, figure in heads]
        lines.append(f"| {row['tokens']} | {row['num']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
