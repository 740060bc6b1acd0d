"""The event loop is never blocked: blockbuster raises where it would be, and a clock ticks on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Self

import pytest
from blockbuster import BlockBuster, blockbuster_ctx

from stars_engine import SamplingParams, StarsEngine

SAMPLING = SamplingParams(seed=3, max_tokens=48)


@pytest.fixture
def blockbuster() -> Iterator[BlockBuster]:
    with blockbuster_ctx() as guard:
        yield guard


class Ticks:
    """Counts how often the event loop comes round."""

    def __init__(self) -> None:
        self.count = 0

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._task.cancel()

    async def _tick(self) -> None:
        while True:
            self.count += 1
            await asyncio.sleep(0.001)


async def test_warm_calls(engine: StarsEngine, blockbuster: BlockBuster) -> None:
    async with Ticks() as ticks:
        [result] = await engine.agenerate("This movie", sampling=SAMPLING)
        assert ticks.count > 5
        events = [event async for event in engine.astream("This movie", sampling=SAMPLING)]
    assert "".join(event.text for event in events) == result.text
    results = await asyncio.gather(
        *[engine.agenerate("This movie", sampling=SAMPLING) for _ in range(8)]
    )
    assert {result.text for [result] in results} == {events[-1].result.text}


async def test_cold_calls_load_off_the_loop(blockbuster: BlockBuster) -> None:
    engine = StarsEngine()
    async with Ticks() as ticks:
        first, second = await asyncio.gather(
            engine.agenerate("This movie", sampling=SAMPLING), engine.aload()
        )
        assert ticks.count > 20
    assert first[0].text
    assert second is engine
    assert engine.stats().num_loads == 1
    await asyncio.to_thread(engine.close)
