"""One training run: steps of several small batches, checkpoints, resumption."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from training.data import chunks
from training.optim import HybridOptimizer

Batch = TypeVar("Batch")

CHECKPOINT_EVERY = 50


@dataclass(frozen=True)
class Plan:
    """Length and rates of a training run.

    Attributes:
        num_steps: Updates of the weights.
        lr: Peak learning rate.
        micro_tokens: Tokens of one forward and backward pass, including padding.
        accumulate: Passes per update.
        seed: Fixes the initial weights and the order of the rows.
    """

    num_steps: int
    lr: float
    micro_tokens: int
    accumulate: int
    seed: int


def train(
    model: nn.Module,
    batches: Iterable[Batch],
    loss_of: Callable[[Batch], tuple[torch.Tensor, float]],
    plan: Plan,
    *,
    checkpoint: Path | None,
    log: Callable[[str], None],
) -> float:
    """Train `model` in place; resume from `checkpoint` if it exists.

    Args:
        model: The model.
        batches: Batch of each pass, in the same order in every run.
        loss_of: Returns the *summed* loss of a batch and the sum of its weights.
        plan: Length and rates.
        checkpoint: File that is written every 50 steps and at the end; None for no checkpoint.
        log: Takes a line of progress.

    Returns:
        Seconds spent in training, including those before a resumption.
    """
    optimizer = HybridOptimizer(model, lr=plan.lr, num_steps=plan.num_steps)
    before = 0.0
    if checkpoint is not None and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        before = saved["seconds"]
        log(f"going on from step {optimizer.num_done}")
    started = time.monotonic() - before
    recent: list[float] = []
    for passes in _steps(batches, plan, optimizer.num_done):
        parts = []
        for batch in passes:
            total, weight = loss_of(batch)
            # Passes weigh about the same; treating them as equal frees one pass before the next.
            (total / weight / len(passes)).backward()
            parts.append(total.item() / weight)
        optimizer.step()
        recent = [*recent[-49:], sum(parts) / len(parts)]
        seconds = time.monotonic() - started
        step = optimizer.num_done
        if step % 10 == 0 or step == plan.num_steps:
            mean = sum(recent) / len(recent)
            log(f"step {step}/{plan.num_steps} loss {mean:.4f} {seconds:.0f} s")
        if checkpoint is not None and (step % CHECKPOINT_EVERY == 0 or step == plan.num_steps):
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "seconds": seconds,
            }
            partial = checkpoint.with_suffix(".part")
            torch.save(state, partial)
            partial.replace(checkpoint)
    return time.monotonic() - started


def _steps(batches: Iterable[Batch], plan: Plan, num_done: int) -> Iterator[Sequence[Batch]]:
    """Yield the passes of each remaining step."""
    steps = chunks(batches, plan.accumulate)
    for step, passes in enumerate(steps):
        if step >= plan.num_steps:
            return
        if step >= num_done:
            yield passes
