"""Choose how a reward model computes texts, incrementally or whole, by a self-check at load."""

from __future__ import annotations

import logging
from typing import Any

import torch

from stars_engine.kv_cache.self_check import ROUNDING, window_of
from stars_engine.rewards.batch_invariance import Sharing
from stars_engine.rewards.batching import CallAt, RunWhole
from stars_engine.rewards.encoding import EncodedInput
from stars_engine.rewards.incremental import IncrementalRunner

logger = logging.getLogger(__name__)


def select_runner(
    model: Any,
    call: CallAt,
    plain: RunWhole,
    *,
    context_len: int | None,
    batch_size: int,
    sharing: Sharing,
    head: torch.nn.Module | None = None,
) -> tuple[IncrementalRunner | None, str]:
    """Return an incremental runner if its outputs equal those of `plain`, and a description.

    Args:
        model: A causal transformers model.
        call: Calls the model with a cache.
        plain: Computes whole rows as one batch; returns the outputs at their points.
        context_len: The context length; None for no limit.
        batch_size: Maximum rows per pass.
        sharing: Which rows may share a pass.
        head: A module that `call` uses in addition to the model, if any.
    """
    if sharing is not Sharing.ANY:
        return None, "whole texts (scores depend on batch composition)"

    runner = IncrementalRunner(model, call, context_len, batch_size=batch_size, head=head)
    problem = _find_problem(runner, plain, model, context_len)
    if problem is not None:
        logger.warning(
            "%s scores whole texts instead of new tokens only, which is slower: %s",
            type(model).__name__,
            problem,
        )
        return None, f"whole texts ({problem})"
    runner.cache.free_unused()
    runner.num_computed = runner.num_prefills = 0
    return runner, "new tokens only"


@torch.inference_mode()
def _find_problem(
    runner: IncrementalRunner, plain: RunWhole, model: Any, context_len: int | None
) -> str | None:
    """Compare a runner with plain passes on random ids; return the problem, or None."""
    generator = torch.Generator().manual_seed(0)
    size = 12 + window_of(model)
    if context_len is not None:
        size = min(size, context_len - 12)
    if size < 1:
        return "its context is too short to check"
    vocab_size = model.get_input_embeddings().weight.shape[0]

    def random_ids(count: int) -> list[int]:
        ids: list[int] = torch.randint(vocab_size, (count,), generator=generator).tolist()
        return ids

    def grown(ids: list[int], marks: tuple[int, ...], count: int) -> EncodedInput:
        end = len(ids) + count - 1
        return EncodedInput([*ids, *random_ids(count)], (*marks, end - 1, end))

    kept: list[tuple[list[int], tuple[int, ...]]]
    kept = [(random_ids(length), (length // 2,)) for length in (size, size - size // 4)]
    try:
        for _ in range(3):
            rows = [grown(*each, count) for each in kept for count in (4, 3, 4)]
            ours = torch.cat(runner.run(rows)).float()
            plainly = torch.cat([found for row in rows for found in plain([row])]).float()
            difference = (ours - plainly).abs().max().item()
            scale = plainly.abs().max().item()
            if not difference <= ROUNDING.get(model.dtype, 6e-2) * max(scale, 0.1):
                return f"values differed by {difference:.2g} of {scale:.2g}"
            # The first row keeps its last point; the second one loses it.
            kept = [(rows[1].ids, rows[1].marks), (rows[5].ids[:-1], rows[5].marks[:-1])]
    except Exception as error:  # noqa: BLE001 - architectures fail in many ways
        return f"{type(error).__name__}: {error}"
    return None
