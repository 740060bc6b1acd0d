"""Train the sentiment process reward model from the language model's own weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.nn import functional
from transformers import (
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from training.data import batches, pad
from training.optim import HybridOptimizer

PREFIX_LENS = (16, 32, 64, 128)


def train_reward(
    language_model: LlamaForCausalLM,
    rows: Sequence[Sequence[int]],
    labels: Sequence[int],
    *,
    num_steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    log: Callable[[str], None],
) -> LlamaForSequenceClassification:
    """Train one logit, log-odds of a positive review, on *every* prefix of every row.

    A classifier trained on whole reviews would be asked about openings it never saw; the loss on
    every prefix makes its logit an estimate of the final label from what has been read so far.
    """
    torch.manual_seed(seed)
    config = language_model.config.__class__(
        **{**language_model.config.to_dict(), "num_labels": 1, "architectures": None}
    )
    model = LlamaForSequenceClassification(config)
    model.model.load_state_dict(language_model.model.state_dict())
    torch.nn.init.zeros_(model.score.weight)
    optimizer = HybridOptimizer(model, lr=lr, num_steps=num_steps)
    started = time.monotonic()
    running = math.nan
    for step, picked in enumerate(
        batches(rows, batch_size=batch_size, num_steps=num_steps, seed=seed)
    ):
        chosen = [rows[index] for index in picked]
        logits = prefix_logits(model, chosen)  # (batch, max_len)
        targets = torch.tensor([labels[index] for index in picked], dtype=torch.float)
        lengths = torch.tensor([len(row) for row in chosen])
        position = torch.arange(logits.shape[1])
        # The first tokens cannot tell; weights grow over the first 16 and then stay level.
        weights = (position / 16).clamp(max=1) * (position < lengths[:, None])
        losses = functional.binary_cross_entropy_with_logits(
            logits, targets[:, None].expand_as(logits), reduction="none"
        )
        loss = (losses * weights).sum() / weights.sum()
        loss.backward()
        optimizer.step()
        running = loss.item() if math.isnan(running) else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 0 or step == num_steps - 1:
            log(f"reward {step}/{num_steps} loss {running:.4f} {time.monotonic() - started:.0f} s")
    return model.eval()


def prefix_logits(
    model: LlamaForSequenceClassification, rows: Sequence[Sequence[int]]
) -> torch.Tensor:
    """The model's logit after each token: `(num_rows, max_len)`, float32."""
    ids = pad(rows, value=model.config.pad_token_id)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        logits: torch.Tensor = model.score(hidden)[..., 0]
    return logits.float()


@torch.inference_mode()
def prefix_accuracy(
    model: LlamaForSequenceClassification, rows: Sequence[Sequence[int]], labels: Sequence[int]
) -> dict[str, float]:
    """Share of reviews whose label the logit's sign gives, by number of tokens read."""
    correct: dict[str, list[bool]] = {str(length): [] for length in (*PREFIX_LENS, "end")}
    for start in range(0, len(rows), 16):
        chunk = rows[start : start + 16]
        logits = prefix_logits(model, chunk)
        for row, label, row_logits in zip(chunk, labels[start : start + 16], logits, strict=True):
            for name, hits in correct.items():
                index = len(row) - 1 if name == "end" else int(name)
                if index < len(row):
                    hits.append((row_logits[index].item() > 0) == bool(label))
    return {name: sum(hits) / len(hits) for name, hits in correct.items()}


def save_reward(
    model: LlamaForSequenceClassification, tokenizer: PreTrainedTokenizerFast, directory: Path
) -> None:
    """Write float16 safetensors, config and tokenizer."""
    model.to(torch.float16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
