"""Rows of token ids in batches of like length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch

from stars_engine.rewards.sharing import Sharing, batches

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batch(NamedTuple):
    """Rows padded on the right.

    Attributes:
        input_ids: (rows, tokens).
        attention_mask: (rows, tokens), 1 where a token is the row's own.
        lengths: (rows,), at least 1.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    lengths: torch.Tensor


def pad(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> Batch:
    """Put rows of different lengths into one batch."""
    width = max(len(row) for row in rows)
    padded = [[*row, *[pad_id] * (width - len(row))] for row in rows]
    lengths = torch.tensor([len(row) for row in rows], device=device)
    mask = (torch.arange(width, device=device) < lengths[:, None]).long()
    return Batch(torch.tensor(padded, device=device), mask, lengths)


def in_batches(
    items: Sequence[Item],
    lengths: Sequence[int],
    batch_size: int,
    run: Callable[[Sequence[Item]], Sequence[Result]],
    sharing: Sharing = Sharing.ANY,
) -> list[Result]:
    """Run items of like length together, and return the results in the items' order."""
    results: dict[int, Result] = {}
    for batch in batches(lengths, batch_size, sharing):
        results |= zip(batch, run([items[index] for index in batch]), strict=True)
    return [results[index] for index in range(len(items))]


def last_logits(
    model: torch.nn.Module, batch: Batch, positions: Sequence[int], *, can_choose: bool
) -> torch.Tensor:
    """Return a causal model's logits at some positions only.

    Args:
        model: The model.
        batch: What it reads.
        positions: Where, ascending; the same for all rows.
        can_choose: Whether `forward` takes `logits_to_keep`; without it logits of all tokens are
            computed.

    Returns:
        (rows, positions, vocabulary).
    """
    keep = torch.tensor(positions, device=batch.input_ids.device)
    options = {"logits_to_keep": keep} if can_choose else {}
    logits: torch.Tensor = model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **options
    ).logits
    return logits if can_choose else logits[:, keep]
