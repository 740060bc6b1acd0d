"""Train the sentiment process reward model from the language model's own weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from training.data import Row, epochs
from training.heads import Weights, prefix_logits, prefix_loss, with_head
from training.lm import CONTEXT_LEN
from training.runs import Plan, train

DROPOUT = 0.1
WORD_DROPOUT = 0.1
TEACHER_WEIGHTS = Weights(rise=16)
WEIGHTS = Weights(rise=16, fall=64, last=8.0)
_BATCH_TOKENS = 4096


def train_reward(
    language_model: LlamaForCausalLM,
    rows: Sequence[Row],
    targets: Sequence[float],
    plan: Plan,
    weights: Weights,
    *,
    compiled: bool = False,
    checkpoint: Path | None = None,
    log: Callable[[str], None],
) -> tuple[LlamaForSequenceClassification, float]:
    """Train one logit, log-odds of a positive review, on *every* prefix of every row.

    A classifier trained on whole reviews would be asked about openings it never saw; the loss on
    every prefix makes its logit an estimate of the final label from what has been read so far.

    Args:
        language_model: Gives the first weights of the body; the head begins at 0.
        rows: Token ids; cut at the context length.
        targets: Probability that each row's review is positive; a label is 0 or 1.
        plan: Length and rates.
        weights: Of the prefixes.
        compiled: Whether `torch.compile` is used.
        checkpoint: File to go on from and to write to.
        log: Takes a line of progress.

    Returns:
        The model and the seconds it took.
    """
    torch.manual_seed(plan.seed)
    model = with_head(language_model)
    body = torch.compile(model.model, dynamic=True) if compiled else model.model
    rows = [row[:CONTEXT_LEN] for row in rows]

    def loss(group: list[int]) -> tuple[torch.Tensor, float]:
        chosen = [rows[index] for index in group]
        logits = prefix_logits(model, chosen, body=body, dropout=DROPOUT, word_dropout=WORD_DROPOUT)
        return prefix_loss(logits, [targets[index] for index in group], chosen, weights)

    seconds = train(
        model,
        epochs(rows, num_tokens=plan.micro_tokens, seed=plan.seed),
        loss,
        plan,
        checkpoint=checkpoint,
        log=log,
    )
    return model.eval(), seconds


def windows(row: Row, context_len: int = CONTEXT_LEN) -> list[Row]:
    """Return what is read of a row: all of it, or its beginning and its end.

    The end begins with the row's first token, as every text does.
    """
    if len(row) <= context_len:
        return [row]
    return [row[:context_len], [row[0], *row[1 - context_len :]]]


@torch.inference_mode()
def verdicts(model: LlamaForSequenceClassification, rows: Sequence[Row]) -> NDArray[np.float32]:
    """Return the probability that each review is positive: `(len(rows),)`.

    Of a review beyond the context, the mean log-odds of its two windows.
    """
    pieces = [(index, window) for index, row in enumerate(rows) for window in windows(row)]
    pieces.sort(key=lambda piece: len(piece[1]))
    sums, counts = np.zeros(len(rows)), np.zeros(len(rows))
    while pieces:
        size = max(1, _BATCH_TOKENS // len(pieces[-1][1]))
        batch, pieces = pieces[-size:], pieces[:-size]
        logits = prefix_logits(model, [window for _, window in batch])
        for (index, window), values in zip(batch, logits, strict=True):
            sums[index] += values[len(window) - 1].item()
            counts[index] += 1
    return (1 / (1 + np.exp(-sums / counts))).astype(np.float32)


def balanced(probabilities: NDArray[np.float32]) -> list[int]:
    """Return which reviews to take so that as many are positive as negative: the first of each.

    Among the reviews without a label two thirds are positive; a model that saw them all would think
    so of every opening.
    """
    kinds = [np.flatnonzero(probabilities > 0.5), np.flatnonzero(probabilities <= 0.5)]
    size = min(map(len, kinds))
    return sorted(index for kind in kinds for index in kind[:size].tolist())


def save_reward(
    model: LlamaForSequenceClassification, tokenizer: PreTrainedTokenizerFast, directory: Path
) -> None:
    """Write float16 safetensors, config and tokenizer."""
    model.to(torch.float16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
