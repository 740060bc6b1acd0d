"""Bytes by holder, as `engine.stats()` reports them, and their bounds."""

from __future__ import annotations

import weakref

import pytest
import torch

from stars_engine import (
    AlignParams,
    EngineParams,
    FunctionReward,
    NoSchedule,
    RewardError,
    SamplingParams,
    StarsConfig,
    StarsEngine,
)
from stars_engine.rewards.base import score_each
from stars_engine.rewards.function import FunctionRewardModel
from stars_engine.types import RewardInput, RewardPrompt

LIMIT = 3_000_000


def test_an_error_that_is_kept_holds_no_tensors() -> None:
    held = []

    def reward(prompt: str, completion: str) -> float:
        states = torch.zeros(1000)
        held.append(weakref.ref(states))
        raise ValueError("a fault")

    [error] = score_each(
        FunctionRewardModel(FunctionReward(function=reward)),
        [RewardInput(RewardPrompt("a"), "b", ())],
    )
    assert isinstance(error, RewardError)
    assert error.__cause__.__traceback__ is not None
    assert held[0]() is None


ALIGN = AlignParams(schedule=NoSchedule(), num_candidates=4, segment_len=8)


@pytest.fixture(scope="module")
def models() -> StarsEngine:
    return StarsEngine(StarsConfig(align=ALIGN)).load()


@pytest.mark.slow
def test_stats_tell_bytes_by_holder(models: StarsEngine) -> None:
    with StarsEngine(StarsConfig(align=ALIGN), model=models.model, reward=models.reward) as engine:
        assert engine.stats().memory_bytes == {}
        engine.generate("This movie was", sampling=SamplingParams(seed=1, max_tokens=24))
        found = engine.stats().memory_bytes
    pool = models.model.decoder.cache.pool
    layers = models.model.decoder._runner._packed._layers
    assert found["model.kv_cache"] == sum(
        states.nbytes for block in pool._blocks for part in block.parts() for states in part
    )
    assert found["model.packed_weights"] == sum(layer.weight.nbytes for layer in layers)
    assert found["model.packed_weights"] > 1e6
    for holder in ("kv_cache", "candidates", "packed_weights"):
        assert found[f"reward.{holder}"] > 0
        assert found[f"model.{holder}"] > 0


@pytest.mark.slow
def test_both_caches_stay_within_the_limit_under_many_prompts(models: StarsEngine) -> None:
    config = StarsConfig(align=ALIGN, engine=EngineParams(max_cache_bytes=LIMIT))
    prompts = [f"{'I saw it again. ' * (index % 7)}Film {index}" for index in range(24)]
    with StarsEngine(config, model=models.model, reward=models.reward) as engine:
        for first in range(0, len(prompts), 8):
            engine.generate(
                prompts[first : first + 8], sampling=SamplingParams(seed=1, max_tokens=24)
            )
            found = engine.stats().memory_bytes
            assert found["model.kv_cache"] <= LIMIT
            assert found["reward.kv_cache"] <= LIMIT
