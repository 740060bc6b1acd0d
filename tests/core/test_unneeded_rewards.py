"""Asynchronous rewards of requests that have ended: they are cancelled, and delay no other."""

from __future__ import annotations

import asyncio
import threading

from stars_engine import AlignParams, ConstantSchedule, SamplingParams, StarsEngine
from tests.support.engines import with_reward

ALIGN = AlignParams(schedule=ConstantSchedule(value=0.0), segment_len=4, num_candidates=2)
SAMPLING = SamplingParams(seed=1, max_tokens=4)


def test_a_reward_that_blocks_its_loop_delays_others_until_its_deadline(
    engine: StarsEngine,
) -> None:
    blocking, released = threading.Event(), threading.Event()

    async def reward(prompt: str, _completion: str) -> float:
        if prompt == "slow":
            blocking.set()
            released.wait(30)  # without `await`
        return 1.0

    with with_reward(engine, reward) as mine:
        slow = mine.submit("slow", sampling=SAMPLING, align=ALIGN.replace(deadline_s=0.3))
        assert blocking.wait(30)
        other = mine.submit("quick", sampling=SAMPLING, align=ALIGN)
        assert slow.result(30)[0].finish_reason == "deadline"
        assert other.result(20)[0].finish_reason == "length"
        assert not released.is_set()
        released.set()


def test_a_reward_is_cancelled_at_the_deadline_of_its_request(engine: StarsEngine) -> None:
    cancelled = threading.Event()

    async def reward(_prompt: str, _completion: str) -> float:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return 1.0

    with with_reward(engine, reward) as mine:
        slow = mine.submit("slow", sampling=SAMPLING, align=ALIGN.replace(deadline_s=0.3))
        assert slow.result(30)[0].finish_reason == "deadline"
        assert cancelled.wait(10)
