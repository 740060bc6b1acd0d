"""Shared parts of both rewards of the second axis: fitting and saving."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import LlamaForSequenceClassification
from transformers import PreTrainedTokenizerFast as Tokenizer

from training.reward_head import prefix_logits

WARMUP = 0.15  # of the steps
BODY_RATE = 0.3  # of the rate of embeddings and head


@torch.inference_mode()
def all_logits(
    model: LlamaForSequenceClassification, rows: Sequence[Sequence[int]]
) -> list[list[float]]:
    """Return each row's logits after each of its tokens."""
    found: list[list[float]] = []
    for start in range(0, len(rows), 64):
        chunk = rows[start : start + 64]
        values = prefix_logits(model, chunk).tolist()
        found += [row[: len(ids)] for row, ids in zip(values, chunk, strict=True)]
    return found


def fit(
    model: LlamaForSequenceClassification,
    losses: Sequence[Callable[[], torch.Tensor]],
    *,
    lr: float,
    log: Callable[[str], None],
) -> float:
    """Take one AdamW step for each loss, warmed up and along a cosine.

    Args:
        model: Trained in place, and left in evaluation mode.
        losses: Each returns the loss of its own batch.
        lr: Peak learning rate of embeddings and head; the body's is a fraction.
        log: Receives a line of progress now and then.

    Returns:
        The running mean of the loss at the end.
    """
    num_steps = len(losses)
    outer = [p for name, p in model.named_parameters() if "embed_tokens" in name or "score" in name]
    chosen = {id(p) for p in outer}
    body = [p for p in model.parameters() if id(p) not in chosen]
    optimizer = torch.optim.AdamW(
        [{"params": outer, "lr": lr}, {"params": body, "lr": lr * BODY_RATE}],
        betas=(0.9, 0.98),
        weight_decay=0.05,
    )
    warmup = max(1, round(WARMUP * num_steps))

    def rate(step: int) -> float:
        cosine = 0.5 * (1 + math.cos(math.pi * step / num_steps))
        return min(1, (step + 1) / warmup) * (0.02 + 0.98 * cosine)

    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    running = math.nan
    model.train()
    for step, batch_loss in enumerate(losses):
        loss = batch_loss()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rates.step()
        optimizer.zero_grad(set_to_none=True)
        running = loss.item() if math.isnan(running) else 0.95 * running + 0.05 * loss.item()
        if step % 50 == 0 or step == num_steps - 1:
            log(f"{step}/{num_steps} loss {running:.4f}")
    model.eval()
    return running


def save(model: LlamaForSequenceClassification, tokenizer: Tokenizer, directory: Path) -> None:
    """Write float32 safetensors, config and tokenizer, exactly as measured."""
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
