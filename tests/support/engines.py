"""Engines for tests of scheduling, with settings that finish quickly or never."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from stars_engine import (
    AlignParams,
    ConstantSchedule,
    EngineParams,
    FunctionReward,
    NoSchedule,
    SamplingParams,
    StarsConfig,
    StarsEngine,
)

NEVER = AlignParams(schedule=ConstantSchedule(value=1e9), segment_len=4, max_attempts=10_000)
SHORT = SamplingParams(seed=3, max_tokens=16)
LONG = SamplingParams(seed=3, max_tokens=400)


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s, "waited in vain"
        time.sleep(0.002)


async def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Wait as `wait_until` does, while the event loop runs."""
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s, "waited in vain"
        await asyncio.sleep(0.002)


def idle(engine: StarsEngine) -> bool:
    stats = engine.stats()
    return stats.num_active == stats.num_waiting == stats.num_in_line == 0


def with_reward(
    engine: StarsEngine, reward: Callable[..., Any], params: EngineParams | None = None, **more: Any
) -> StarsEngine:
    """An engine of its own over the loaded model of another."""
    config = StarsConfig(
        model="stars:embedded-lm",
        reward=FunctionReward(function=reward, **more),
        align=AlignParams(schedule=NoSchedule(), segment_len=8),
        engine=params or EngineParams(),
    )
    return StarsEngine(config, model=engine.model)
