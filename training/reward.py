"""Train the sentiment process reward model from the language model's own weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import (
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from training.data import Row, epochs
from training.heads import prefix_logits, prefix_loss, with_head
from training.lm import CONTEXT_LEN
from training.runs import Plan, train

DROPOUT = 0.1
WORD_DROPOUT = 0.1
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
    rows = [row[:CONTEXT_LEN] for row in rows]

    def loss(group: list[int]) -> tuple[torch.Tensor, float]:
        chosen = [rows[index] for index in group]
        logits = prefix_logits(
            model, chosen, body=body, dropout=DROPOUT, word_dropout=WORD_DROPOUT
        )
        return prefix_loss(logits, [targets[index] for index in group], chosen, rise=RISE)

    seconds = train(
        model,
        epochs(rows, num_tokens=plan.micro_tokens, seed=plan.seed),
        loss,
        plan,
        checkpoint=checkpoint,
        log=log,
    )
    return model.eval(), seconds


def save_reward(
    model: LlamaForSequenceClassification, tokenizer: PreTrainedTokenizerFast, directory: Path
) -> None:
    """Write float16 safetensors, config and tokenizer."""
    model.to(torch.float16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
