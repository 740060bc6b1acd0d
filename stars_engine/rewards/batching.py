"""Batch rows of token ids by length, and read a model's outputs at given positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch

from stars_engine.rewards.batch_invariance import Sharing, batches
from stars_engine.rewards.encoding import EncodedInput

Item = TypeVar("Item")
Result = TypeVar("Result")


class CallAt(Protocol):
    """Calls a model and returns its outputs at given tokens of each row."""

    def __call__(self, columns: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """Call the model with `inputs`, unchanged.

        Args:
            columns: `(rows, count)`, the columns to return outputs for; they may repeat.
            inputs: `input_ids`, `(rows, tokens)`, and other arguments of the model.

        Returns:
            The outputs, `(rows, count, ...)`.
        """


RunWhole = Callable[[Sequence[EncodedInput]], Sequence[torch.Tensor]]  # `(points, ...)` of each row


def pad(
    rows: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """Pad rows on the right into one batch.

    Returns:
        `input_ids` and `attention_mask`, `(rows, tokens)` each.
    """
    width = max(len(row) for row in rows)
    padded = [[*row, *[pad_id] * (width - len(row))] for row in rows]
    lengths = torch.tensor([len(row) for row in rows], device=device)
    mask = (torch.arange(width, device=device) < lengths[:, None]).long()
    return {"input_ids": torch.tensor(padded, device=device), "attention_mask": mask}


def pad_columns(columns: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """Pad each row's columns by repeating the last one; return `(rows, count)`, count >= 1."""
    count = max(map(len, columns))
    padded = [[*row, *[row[-1]] * (count - len(row))] for row in columns]
    return torch.tensor(padded, device=device)


def at_columns(states: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Select columns: `(rows, tokens, ...)` to `(rows, count, ...)`."""
    columns = columns.to(states.device)
    return states[torch.arange(len(columns), device=states.device)[:, None], columns]


def run_whole(
    call: CallAt, rows: Sequence[EncodedInput], pad_id: int, device: torch.device
) -> list[torch.Tensor]:
    """Compute whole rows as one batch; return the outputs at each row's points, `(points, ...)`."""
    columns = pad_columns([row.points for row in rows], device)
    outputs = call(columns, **pad([row.ids for row in rows], pad_id, device))
    return [output[: len(row.points)] for output, row in zip(outputs, rows, strict=True)]


def in_batches(
    items: Sequence[Item],
    lengths: Sequence[int],
    batch_size: int,
    run: Callable[[Sequence[Item]], Sequence[Result]],
    sharing: Sharing = Sharing.ANY,
) -> list[Result]:
    """Run items in batches of similar length; return the results in the order of the items."""
    results: dict[int, Result] = {}
    for batch in batches(lengths, batch_size, sharing):
        results |= zip(batch, run([items[index] for index in batch]), strict=True)
    return [results[index] for index in range(len(items))]
