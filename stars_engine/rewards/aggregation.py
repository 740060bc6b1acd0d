"""Aggregate the scores of an answer's tokens, or steps, into one reward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import mul

import torch

from stars_engine.errors import ModelLoadError
from stars_engine.kv_cache.self_check import ROUNDING
from stars_engine.rewards.batching import RunWhole
from stars_engine.rewards.encoding import EncodedInput


def aggregate(scores: Sequence[float], how: str, half_life: float) -> float:
    """Return one reward for the scores of an answer, at least one, in order.

    Args:
        scores: One score per token or step.
        how: "last", "min", "mean", "product", or "ema": the mean with weights that halve every
            `half_life` scores before the last one.
        half_life: See `how`; above 0.
    """
    if how == "last":
        return scores[-1]
    if how == "min":
        return min(scores)
    if how == "product":
        return math.prod(scores)
    if how == "mean":
        return math.fsum(scores) / len(scores)
    weights = [0.5 ** (age / half_life) for age in reversed(range(len(scores)))]
    return math.fsum(map(mul, weights, scores)) / math.fsum(weights)


def check_reads_forward(
    run_whole: RunWhole, ids: Sequence[int], *, name: str, how: str, dtype: torch.dtype
) -> None:
    """Check that a score at a token does not depend on the tokens after it.

    Args:
        run_whole: See `reads_forward`.
        ids: See `reads_forward`.
        name: The name of the model, for the message.
        how: The aggregate that needs this.
        dtype: See `reads_forward`.

    Raises:
        ModelLoadError: It does.
    """
    if not reads_forward(run_whole, ids, dtype=dtype):
        raise not_causal(name, how)


@torch.inference_mode()
def reads_forward(run_whole: RunWhole, ids: Sequence[int], *, dtype: torch.dtype) -> bool:
    """Return whether a score at a token does not depend on the tokens after it.

    Args:
        run_whole: Returns the outputs at the points of rows.
        ids: A probe of at least two tokens.
        dtype: The dtype that the model computes in, which determines the tolerance.
    """
    middle = max(0, len(ids) // 2 - 1)
    [whole] = run_whole([EncodedInput(list(ids), (middle, len(ids) - 1))])
    [part] = run_whole([EncodedInput(list(ids[: middle + 1]))])
    difference = (whole[0].float() - part[-1].float()).abs().max().item()
    scale = max(whole.float().abs().max().item(), 0.1)
    return difference <= ROUNDING.get(dtype, 6e-2) * scale


def not_causal(name: str, how: str) -> ModelLoadError:
    """Return the error of an aggregate that a model does not support."""
    return ModelLoadError(
        f"aggregate={how!r} needs a causal model, whose score at a token depends only on the text "
        f"up to it, and {name} is not one. Hint: use aggregate='last', or a causal model"
    )
