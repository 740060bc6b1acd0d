"""Rewards of beginnings of texts by a causal classifier, and measures of their quality."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import spearmanr
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from stars_engine.loading.sources import tokenizer_files
from training.data import Row
from training.pieces import beginning
from training.teaching import windows

Floats = NDArray[np.float64]

NUM_BINS = 10
_BATCH_TOKENS = 8192


def read_prefixes(
    directory: Path,
    texts: Sequence[str],
    lengths: Sequence[int | None],
    *,
    context: int | None = None,
) -> Floats:
    """Return a causal classifier's logit after the beginning of each text, as `score` would.

    Each beginning is encoded by itself. If its ids are a prefix of those of the whole text, one
    forward pass serves both, since causal attention never looks right; otherwise it needs its own
    pass.

    Args:
        directory: A checkpoint with one logit, and its tokenizer.
        texts: Texts to read.
        lengths: Lengths in words; None for the whole text.
        context: Maximum number of tokens, by default the model's own: the first one, and the last
            of a longer text, as rewards truncate a prompt.

    Returns:
        `(len(texts), len(lengths))`.
    """
    tokenizer = AutoTokenizer.from_pretrained(directory, **tokenizer_files(str(directory)))
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)
    context = context or model.config.max_position_embeddings
    whole = _encode(tokenizer, texts, context)
    rows = list(whole)
    wanted: list[list[tuple[int, int, int]]] = [
        [] for _ in rows
    ]  # for each row: token, text, column
    for column, length in enumerate(lengths):
        beginnings = _encode(tokenizer, [beginning(text, length) for text in texts], context)
        for index, ids in enumerate(beginnings):
            if whole[index][: len(ids)] == ids:
                wanted[index].append((len(ids) - 1, index, column))
            else:
                rows.append(ids)
                wanted.append([(len(ids) - 1, index, column)])
    logits = np.full((len(texts), len(lengths)), np.nan)
    for chosen in _batches(rows):
        found = _all_logits(model.eval(), [rows[row] for row in chosen])
        for line, row in enumerate(chosen):
            for token, index, column in wanted[row]:
                logits[index, column] = found[line, token]
    return logits


def accuracy(logits: Floats, labels: Sequence[int]) -> NDArray[np.bool]:
    """Return where the sign of a logit is right; shaped as `logits`, with labels along the rows."""
    truth = np.asarray(labels, bool)
    return np.asarray((logits > 0) == truth.reshape(-1, *[1] * (logits.ndim - 1)))


def calibration(logits: Floats, labels: Sequence[int]) -> dict[str, Any]:
    """Return the reliability curve of logits, `(texts,)`, and the expected calibration error.

    Ten bins of equal width in probability; the error is the mean, over texts, of the distance
    between a bin's mean probability and its share of positive texts (Guo et al. 2017).
    """
    probabilities = expit(logits)
    truth = np.asarray(labels, float)
    bins = np.minimum((probabilities * NUM_BINS).astype(int), NUM_BINS - 1)
    curve, error = [], 0.0
    for number in range(NUM_BINS):
        inside = bins == number
        if not inside.any():
            continue
        predicted, seen = float(probabilities[inside].mean()), float(truth[inside].mean())
        error += inside.mean() * abs(predicted - seen)
        curve.append({"texts": int(inside.sum()), "probability": predicted, "positive": seen})
    signed = logits * (2 * truth - 1)
    return {
        "expected_calibration_error": float(error),
        "log_loss": float(np.logaddexp(0, -signed).mean()),
        "curve": curve,
    }


def rank_correlations(logits: Floats) -> list[float]:
    """Return Spearman's correlation of each column but the last with the last."""
    return [
        float(spearmanr(logits[:, column], logits[:, -1]).statistic)
        for column in range(logits.shape[1] - 1)
    ]


def lead(ours: NDArray[np.bool], theirs: NDArray[np.bool]) -> tuple[float, float]:
    """Return by how much more often one is right than the other, and 1.96 standard errors.

    Both are measured on the same texts, `(texts,)`, so the difference is paired.
    """
    difference = ours.astype(float) - theirs
    return float(difference.mean()), float(1.96 * difference.std(ddof=1) / np.sqrt(len(difference)))


def shown(heads: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """Return a Markdown table with rows by name."""
    lines = [["", *heads], ["---", *["---:"] * len(heads)]]
    lines += [[name, *cells] for name, cells in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _encode(tokenizer: Any, texts: Sequence[str], context: int) -> list[Row]:
    return [windows(row, context)[-1] for row in tokenizer(list(texts), verbose=False)["input_ids"]]


def _batches(rows: Sequence[Row]) -> list[list[int]]:
    """Return row indices, with rows of similar length together."""
    groups: dict[int, list[list[int]]] = defaultdict(lambda: [[]])
    for index in sorted(range(len(rows)), key=lambda index: len(rows[index])):
        width = -(-len(rows[index]) // 32) * 32
        if (len(groups[width][-1]) + 1) * width > _BATCH_TOKENS:
            groups[width].append([])
        groups[width][-1].append(index)
    return [group for found in groups.values() for group in found if group]


@torch.inference_mode()
def _all_logits(model: Any, rows: Sequence[Row]) -> NDArray[np.float32]:
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    # Causal attention never looks right, so right padding needs no mask.
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    logits: torch.Tensor = model.score(hidden)[..., 0]
    return logits.numpy()
