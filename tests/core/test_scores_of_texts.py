"""Scores of many, or long, texts: others go on meanwhile, and everything is bounded."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from stars_engine import (
    AlignParams,
    ConfigError,
    EngineClosedError,
    EngineParams,
    NoSchedule,
    PromptError,
    RewardError,
    SamplingParams,
    StarsConfig,
    StarsEngine,
)
from stars_engine.core.engine_core import EngineCore
from stars_engine.runtime.score_job import BATCH, BATCH_TOKENS, MAX_OPEN
from stars_engine.types import RewardInput
from tests.support.engines import until, wait_until, with_reward
from tests.support.held_rewards import HeldReward

SMALL = SamplingParams(seed=3, max_tokens=16)
PLAIN = AlignParams(schedule=NoSchedule(), segment_len=4, num_candidates=1)


class Recording:
    """A custom reward, on the engine's thread."""

    def __init__(self) -> None:
        self.batches: list[list[RewardInput]] = []

    def score(self, inputs: Sequence[RewardInput]) -> list[float]:
        self.batches.append(list(inputs))
        return [float(len(item.text)) for item in inputs]

    @property
    def texts(self) -> list[str]:
        return [item.text for batch in self.batches for item in batch]


def engine_of(engine: StarsEngine, reward: Any, **params: Any) -> StarsEngine:
    config = StarsConfig(align=PLAIN, engine=EngineParams(**params))
    return StarsEngine(config, model=engine.model, reward=reward)


async def test_a_small_request_does_not_wait_for_the_scores_of_many_texts(
    engine: StarsEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"text {number}" for number in range(4000)]
    reward = Recording()
    step, num_scored = EngineCore.step, []

    def counted(self: EngineCore) -> Any:
        if self.has_work():
            num_scored.append(len(reward.texts))
        return step(self)

    monkeypatch.setattr(EngineCore, "step", counted)
    with engine_of(engine, reward) as mine:
        await mine.aload()
        scoring = asyncio.create_task(mine.ascore("a prompt", texts))
        await until(lambda: bool(reward.batches))
        await mine.agenerate("hi", sampling=SMALL)
        assert not scoring.done()
        found = await scoring
    assert len(num_scored) > 1
    # One batch between two steps, and the draft of the first of them.
    assert max(after - before for before, after in pairwise(num_scored)) <= 2 * BATCH
    assert [score.reward for score in found] == [float(len(text)) for text in texts]
    assert max(len(batch) for batch in reward.batches) <= BATCH


def test_long_texts_are_scored_in_smaller_batches(engine: StarsEngine) -> None:
    reward = Recording()
    with engine_of(engine, reward) as mine:
        asyncio.run(mine.ascore("a", ["It was a long film. " * 40] * 6 + ["short"] * 3))
    sizes = [sum(len(item.token_ids) for item in batch) for batch in reward.batches]
    counts = [len(batch) for batch in reward.batches]
    assert sum(counts) == 9
    assert all(size <= BATCH_TOKENS or n == 1 for size, n in zip(sizes, counts, strict=True))


def test_many_texts_are_read_in_the_background(
    engine: StarsEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = engine.model.codec
    encode, threads = codec.encode_continuation, set()

    def recorded(text: str) -> list[int]:
        threads.add(threading.current_thread().name)
        return encode(text)

    monkeypatch.setattr(codec, "encode_continuation", recorded)
    with engine_of(engine, Recording()) as mine:
        for prompt, texts in (("a", ["b"] * 100), ("a", ["b" * 20_000]), ("a" * 20_000, ["b"])):
            threads.clear()
            asyncio.run(mine.ascore(prompt, texts))
            assert threads == {"stars-prepare"}
        threads.clear()
        asyncio.run(mine.ascore("a", ["b", "c"]))
        assert threads == {"stars-engine"}


async def test_few_texts_of_a_job_wait_for_an_offloaded_reward(engine: StarsEngine) -> None:
    reward = HeldReward()
    with with_reward(engine, reward, timeout_s=None, max_concurrency=2) as mine:
        scoring = asyncio.create_task(mine.ascore("a", ["b"] * 1000))
        await until(reward.asked.is_set)
        [(_, workers)] = mine._runtime._loop.reward_executor._workers.values()
        await until(lambda: len(workers._outstanding) >= MAX_OPEN)
        assert len(workers._outstanding) <= MAX_OPEN + BATCH
        reward.opened.set()
        assert len(await scoring) == 1000


@pytest.mark.parametrize("is_offloaded", [True, False])
async def test_closing_ends_the_scores_of_texts(engine: StarsEngine, *, is_offloaded: bool) -> None:
    held = HeldReward()
    reward = Recording()
    mine = with_reward(engine, held) if is_offloaded else engine_of(engine, reward)
    await mine.aload()
    scoring = asyncio.create_task(mine.ascore("a", ["b"] * 20_000))
    await until(lambda: held.asked.is_set() or bool(reward.batches))
    closing = asyncio.create_task(asyncio.to_thread(mine.close))
    with pytest.raises(EngineClosedError, match="closed"):
        await asyncio.wait_for(scoring, 30)
    held.opened.set()
    await closing
    assert len(reward.texts) < 20_000


def test_a_cancelled_call_is_not_scored_to_its_end(engine: StarsEngine) -> None:
    reward = Recording()

    async def give_up(mine: StarsEngine) -> None:
        scoring = asyncio.create_task(mine.ascore("a", ["b"] * 20_000))
        await until(lambda: bool(reward.batches))
        scoring.cancel()

    with engine_of(engine, reward) as mine:
        mine.load()
        asyncio.run(give_up(mine))
        wait_until(lambda: not mine._runtime._loop.score_jobs._open)
        assert mine.generate("hi", sampling=SMALL)[0].text
        assert len(reward.texts) < 20_000


# --- limits ---


def score(mine: StarsEngine, prompt: str, texts: Sequence[str], **more: Any) -> Any:
    return asyncio.run(mine.ascore(prompt, texts, **more))


def test_what_exceeds_a_limit_is_refused(engine: StarsEngine) -> None:
    reward = Recording()
    with engine_of(engine, reward, max_answers=8, max_prompt_chars=100) as mine:
        with pytest.raises(ConfigError, match="9 answers is too large; allowed: at most 8"):
            score(mine, "a", ["b"] * 9)
        with pytest.raises(PromptError, match=r"answer 1 has about 101 characters; .*Hint:"):
            score(mine, "a", ["b", "b" * 101])
        with pytest.raises(PromptError, match="the prompt has about 101"):
            score(mine, "a" * 101, ["b"])
        with pytest.raises(PromptError, match="reward_prompt has about 101"):
            score(mine, "a", ["b"], reward_prompt="c" * 101)
        assert len(score(mine, "a" * 99, ["b" * 99] * 8)) == 8
    assert len(reward.texts) == 8


def test_the_beginnings_of_a_long_text_are_bounded(
    engine: StarsEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stars_engine.engine.scores._MAX_CHARS", 10_000)
    text = "It was a good film, and I liked it. " * 20
    with engine_of(engine, Recording()) as mine:
        with pytest.raises(PromptError, match=r"beginnings of answers 0 to 0 .*longer segment_len"):
            score(mine, "a", [text], segment_len=1)
        [found] = score(mine, "a", [text], segment_len=64)
        assert "".join(part.text for part in found.segments) == text


def test_a_reward_that_fails_for_one_of_many_texts(engine: StarsEngine) -> None:
    def judge(prompt: str, completion: str) -> float:
        if completion == "bad":
            raise SystemExit(3)
        return 1.0

    with with_reward(engine, judge) as mine:
        with pytest.raises(RewardError, match="SystemExit: 3"):
            score(mine, "a", [*["good"] * 500, "bad", *["good"] * 500])
        assert len(score(mine, "a", ["good"] * 300)) == 300
