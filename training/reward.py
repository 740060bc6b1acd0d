"""Train the sentiment process reward model from the language model's own weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import (
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from training.data import Row, epoch
from training.heads import prefix_logits, with_head
from training.lm import CONTEXT_LEN
from training.runs import Plan, train

DROPOUT = 0.1
RISE = 16  # tokens over which the weight of a prefix grows: the first ones cannot tell


def train_reward(
    language_model: LlamaForCausalLM,
    rows: Sequence[Row],
    targets: Sequence[float],
    plan: Plan,
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
        compiled: Whether `torch.compile` is used.
        checkpoint: File to go on from and to write to.
        log: Takes a line of progress.

    Returns:
        The model and the seconds it took.
    """
    torch.manual_seed(plan.seed)
    model = with_head(language_model)
    body = torch.compile(model.model, dynamic=True) if compiled else model.model
    pairs = [(row[:CONTEXT_LEN], target) for row, target in zip(rows, targets, strict=True)]
    seconds = train(
        model,
        _batches(pairs, plan),
        lambda chosen: _loss(model, body, chosen),
        plan,
        checkpoint=checkpoint,
        log=log,
    )
    return model.eval(), seconds


def _batches(pairs: Sequence[tuple[Row, float]], plan: Plan) -> Iterator[list[tuple[Row, float]]]:
    rows = [row for row, _ in pairs]
    for number in count():
        for group in epoch(rows, num_tokens=plan.micro_tokens, seed=plan.seed + number):
            yield [pairs[index] for index in group]


def _loss(
    model: LlamaForSequenceClassification,
    body: Callable[..., Any],
    chosen: Sequence[tuple[Row, float]],
) -> tuple[torch.Tensor, float]:
    """Weighted cross-entropy summed over all prefixes, and the sum of the weights."""
    logits = prefix_logits(model, [row for row, _ in chosen], body=body, dropout=DROPOUT)
    targets = torch.tensor([target for _, target in chosen])[:, None].expand_as(logits)
    lengths = torch.tensor([len(row) for row, _ in chosen])
    position = torch.arange(logits.shape[1])
    weights = (position / RISE).clamp(max=1) * (position < lengths[:, None])
    losses = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (losses * weights).sum(), weights.sum().item()


def save_reward(
    model: LlamaForSequenceClassification, tokenizer: PreTrainedTokenizerFast, directory: Path
) -> None:
    """Write float16 safetensors, config and tokenizer."""
    model.to(torch.float16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
