"""Train the sentiment process reward model on every prefix of reviews."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import LlamaForSequenceClassification, PreTrainedTokenizerFast

from training.data import Row, epochs
from training.reward_head import Weights, prefix_logits, prefix_loss
from training.runs import Plan, train

DROPOUT = 0.1
WORD_DROPOUT = 0.1


def train_reward(
    model: LlamaForSequenceClassification,
    rows: Sequence[Row],
    targets: Sequence[float],
    plan: Plan,
    weights: Weights,
    *,
    compiled: bool = False,
    checkpoint: Path | None = None,
    log: Callable[[str], None],
) -> float:
    """Train one logit in place, log-odds of a positive review, on *every* prefix of every row.

    A classifier trained on whole reviews would have to judge beginnings that it never saw. The loss
    on every prefix makes its logit an estimate of the final label from the text so far.

    Args:
        model: The model to start from.
        rows: Token ids.
        targets: Probability that each row's review is positive; a label is 0 or 1.
        plan: Length and rates.
        weights: Weights of the prefixes.
        compiled: Whether `torch.compile` is used.
        checkpoint: File to resume from and to write to.
        log: Takes a line of progress.

    Returns:
        The seconds of training.
    """
    torch.manual_seed(plan.seed)
    body = torch.compile(model.model, dynamic=True) if compiled else model.model

    def loss(group: list[int]) -> tuple[torch.Tensor, float]:
        chosen = [rows[index] for index in group]
        logits = prefix_logits(model, chosen, body=body, dropout=DROPOUT, word_dropout=WORD_DROPOUT)
        return prefix_loss(logits, [targets[index] for index in group], chosen, weights)

    seconds = train(
        model.train(),
        epochs(rows, num_tokens=plan.micro_tokens, seed=plan.seed),
        loss,
        plan,
        checkpoint=checkpoint,
        log=log,
    )
    model.eval()
    return seconds


def save_reward(
    model: LlamaForSequenceClassification, tokenizer: PreTrainedTokenizerFast, directory: Path
) -> None:
    """Write float16 safetensors, config and tokenizer."""
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.to(torch.float16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def load_reward(directory: Path) -> LlamaForSequenceClassification:
    """Read a checkpoint of `save_reward`."""
    model: LlamaForSequenceClassification = LlamaForSequenceClassification.from_pretrained(
        directory, dtype=torch.float32
    )
    return model.eval()
