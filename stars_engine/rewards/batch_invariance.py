"""Which rows may be scored in one batch.

A reward must not depend on batch composition. Most models do not see padding, because it is masked
or comes after the last token that they use. Some do: XLNet's summary reads the last column, FNet
mixes all columns and has no mask, and a checkpoint's own code may count positions from the end. For
these models, only rows of the same length share a batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from enum import Enum

import torch

from stars_engine.kv_cache.grouping import split_where

logger = logging.getLogger(__name__)

Values = torch.Tensor | Sequence[float]

# Texts that the self-check scores.
PROBES = ("Short.", "A longer text, to be scored alone and beside the short one.")

# Largest difference that counts as rounding, relative to the largest value.
_ROUNDING = {torch.float16: 3e-2, torch.bfloat16: 6e-2}


class Sharing(Enum):
    """Rows that may share a batch."""

    ANY = "of any length"
    EQUAL = "of the same length"
    NONE = "alone"


def find_sharing(
    run: Callable[[Sequence[Sequence[int]]], Values],
    short: Sequence[int],
    long: Sequence[int],
    *,
    name: str,
    dtype: torch.dtype,
) -> Sharing:
    """Compare rows scored together with the same rows alone.

    Args:
        run: Pads rows of token ids and scores them as one batch; returns one value, or one row of
            values, for each.
        short: A row that the model can read.
        long: A longer row.
        name: The name of the model, for the log.
        dtype: The dtype that the model computes in, which determines the tolerance.
    """
    tolerance = _ROUNDING.get(dtype, 1e-4)
    try:
        alone = [_tensor(run([row])) for row in (short, long)]
    except Exception:  # noqa: BLE001 - a model that cannot score raises again on use
        return Sharing.ANY
    if _agree(run, [short, long], torch.cat(alone), tolerance):
        return Sharing.ANY
    equal = _agree(run, [long, long], torch.cat([alone[1], alone[1]]), tolerance)
    sharing = Sharing.EQUAL if equal else Sharing.NONE
    logger.warning(
        "Scores of %s depend on batch composition; texts are scored %s, which is slower",
        name,
        "in batches of equal length" if equal else "one by one",
    )
    return sharing


def batches(lengths: Sequence[int], batch_size: int, sharing: Sharing) -> Iterator[list[int]]:
    """Return the indices of the rows of each batch; rows of similar length are batched together.

    Args:
        lengths: The lengths of all rows.
        batch_size: Maximum rows per batch.
        sharing: Which rows may share a batch.
    """
    size = 1 if sharing is Sharing.NONE else batch_size

    def begins(batch: list[int], index: int) -> bool:
        differs = sharing is Sharing.EQUAL and lengths[index] != lengths[batch[0]]
        return len(batch) == size or differs

    return split_where(sorted(range(len(lengths)), key=lambda index: lengths[index]), begins)


def _agree(
    run: Callable[[Sequence[Sequence[int]]], Values],
    rows: Sequence[Sequence[int]],
    alone: torch.Tensor,
    tolerance: float,
) -> bool:
    try:
        together = _tensor(run(rows))
    except Exception:  # noqa: BLE001 - some models cannot pad at all
        return False
    scale = max(alone.abs().max().item(), 0.1)
    return together.shape == alone.shape and torch.allclose(
        together, alone, rtol=0.0, atol=tolerance * scale
    )


def _tensor(values: Values) -> torch.Tensor:
    return torch.as_tensor(values).detach().double().cpu()
