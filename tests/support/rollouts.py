"""Rollouts for tests that run the loop without an engine."""

from __future__ import annotations

from collections.abc import Sequence

from stars_engine import (
    AlignParams,
    NoSchedule,
    SamplingParams,
)
from stars_engine.algorithm.alternatives import AlternativeIds
from stars_engine.algorithm.noise import CounterNoise
from stars_engine.algorithm.rollout import Rollout
from stars_engine.types import RewardPrompt


def make_rollout(
    prompt_ids: Sequence[int] = (1,),
    *,
    align: AlignParams | None = None,
    sampling: SamplingParams | None = None,
    noise: object = None,
    seed: int = 0,
    sample_index: int = 0,
    alternatives: Sequence[AlternativeIds] = (),
) -> Rollout:
    """A rollout as the engine would make it."""
    return Rollout(
        prompt_ids=tuple(prompt_ids),
        reward_prompt=RewardPrompt("", tuple(prompt_ids)),
        sampling=sampling or SamplingParams(temperature=1.0, top_k=None),
        align=align or AlignParams(schedule=NoSchedule(), num_candidates=4),
        noise=noise or CounterNoise(seed=seed, prompt_ids=prompt_ids, sample_index=sample_index),
        seed=seed,
        sample_index=sample_index,
        alternatives=tuple(alternatives),
    )
