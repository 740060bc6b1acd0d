"""Verdicts on reviews without a label, and the choice of reviews to learn from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import LlamaForSequenceClassification

from training.data import Row
from training.linear import Floats, LinearClassifier
from training.reward_head import prefix_logits

_BATCH_TOKENS = 4096
# Weight of the network's log-odds relative to the linear model's. The network is three times too
# confident on unseen reviews: a logistic regression on 2,500 dev reviews gave 0.30 and 0.98.
_NETWORK_SHARE = 1 / 3


def windows(row: Row, context_len: int) -> list[Row]:
    """Return the tokens of a row that are read: all, or the beginning and the end.

    The end begins with the row's first token, as every text does.
    """
    if len(row) <= context_len:
        return [row]
    return [row[:context_len], [row[0], *row[1 - context_len :]]]


@torch.inference_mode()
def verdicts(
    model: LlamaForSequenceClassification, rows: Sequence[Row], context_len: int
) -> Floats:
    """Return the log-odds that each review is positive: `(len(rows),)`.

    For a review beyond the context, that is the mean of its two windows.
    """
    pieces = [
        (index, window) for index, row in enumerate(rows) for window in windows(row, context_len)
    ]
    pieces.sort(key=lambda piece: len(piece[1]))
    sums, counts = np.zeros(len(rows)), np.zeros(len(rows))
    while pieces:
        size = max(1, _BATCH_TOKENS // len(pieces[-1][1]))
        batch, pieces = pieces[-size:], pieces[:-size]
        logits = prefix_logits(model, [window for _, window in batch])
        for (index, window), values in zip(batch, logits, strict=True):
            sums[index] += values[len(window) - 1].item()
            counts[index] += 1
    return np.asarray(sums / counts)


def with_words(network: Floats, words: LinearClassifier, texts: Sequence[str]) -> Floats:
    """Return log-odds of texts by a network and a bag of words and pairs of words together.

    The two have little in common: if they differ, each is right about half of the time, and one
    learns from the other (co-training, Blum and Mitchell 1998).
    """
    return np.asarray(words.logits(texts) + _NETWORK_SHARE * network)


def balanced(log_odds: Floats) -> list[int]:
    """Return the reviews to use so that as many are positive as negative: the first of each.

    A model that saw more of one kind would expect that kind in every opening.
    """
    kinds = [np.flatnonzero(log_odds > 0), np.flatnonzero(log_odds <= 0)]
    size = min(map(len, kinds))
    return sorted(index for kind in kinds for index in kind[:size].tolist())


@torch.no_grad()
def mean_of(models: Sequence[LlamaForSequenceClassification]) -> LlamaForSequenceClassification:
    """Return the first model with the mean of all models' weights.

    Models trained from the same weights in different ways lie in one basin, and the mean is better
    than any of them (Wortsman et al. 2022, "Model soups").
    """
    found = [model.state_dict() for model in models]
    for name, weights in models[0].named_parameters():
        weights.copy_(torch.stack([weights_of[name] for weights_of in found]).mean(0))
    return models[0]
