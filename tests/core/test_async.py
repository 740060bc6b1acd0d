"""The event loop is never blocked: blockbuster raises on blocking calls, and tasks keep running."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from llama_index.core import PromptTemplate
from llama_index.core.llms import ChatMessage

import langchain_stars
import llamaindex_stars
from stars_engine import SamplingParams, StarsEngine
from tests.support.event_loops import LoopTicker
from tests.support.shared_files import shared_model

SAMPLING = SamplingParams(seed=3, max_tokens=48)


@pytest.fixture
def blockbuster() -> Iterator[BlockBuster]:
    with blockbuster_ctx() as guard:
        yield guard


@pytest.mark.slow
async def test_warm_calls(engine: StarsEngine, blockbuster: BlockBuster) -> None:
    async with LoopTicker() as ticks:
        [result] = await engine.agenerate("This movie", sampling=SAMPLING)
        assert ticks.count > 5
        events = [event async for event in engine.astream("This movie", sampling=SAMPLING)]
    assert "".join(event.text for event in events) == result.text
    results = await asyncio.gather(
        *[engine.agenerate("This movie", sampling=SAMPLING) for _ in range(8)]
    )
    assert {result.text for [result] in results} == {events[-1].result.text}


@pytest.mark.slow
async def test_cold_calls_load_off_the_loop(blockbuster: BlockBuster) -> None:
    engine = StarsEngine()
    async with LoopTicker() as ticks:
        first, second = await asyncio.gather(
            engine.agenerate("This movie", sampling=SAMPLING), engine.aload()
        )
        assert ticks.count > 20
    assert first[0].text
    assert second is engine
    assert engine.stats().num_loads == 1
    await asyncio.to_thread(engine.close)


@pytest.fixture(params=["absolute", "relative"])
def paths(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Where a model and a reward model are."""
    model, reward = shared_model("imdb-lm-656K"), shared_model("rm-sentiment-656K")
    if request.param == "absolute":
        return model, reward
    monkeypatch.chdir(Path(model).parent)
    return f"./{Path(model).name}", f"../models/{Path(reward).name}"


@pytest.mark.slow
async def test_adapters_with_models_by_path(
    paths: tuple[str, str], blockbuster: BlockBuster
) -> None:
    model, reward = paths
    settings = {
        "model": model,
        "reward": reward,
        "schedule": {"kind": "constant", "value": 0.0},
        "max_tokens": 16,
        "seed": 1,
    }
    langchain = langchain_stars.StarsLLM(**settings)
    text = await langchain.ainvoke("This movie")
    assert "".join([chunk async for chunk in langchain.astream("This movie")]) == text
    assert await langchain.abatch(["This movie"] * 2) == [text] * 2
    await asyncio.to_thread(langchain.close)
    cold = [
        lambda llm: llm.acomplete("This movie"),
        lambda llm: llm.achat([ChatMessage("This movie")]),
        lambda llm: llm.apredict(PromptTemplate("This {what}"), what="movie"),
    ]
    for ask in cold:
        llamaindex = llamaindex_stars.StarsLLM(**settings)
        async with LoopTicker() as ticks:
            assert str(await ask(llamaindex))
            assert ticks.count > 5
        assert str(await ask(llamaindex))
        async for response in await llamaindex.astream_complete("This movie"):
            last = response.text
        assert last == text
        await asyncio.to_thread(llamaindex.close)


async def test_loaded_models_can_be_read_during_a_step(engine: StarsEngine) -> None:
    entered, release = threading.Event(), threading.Event()
    engine._runtime._loop.post(lambda: (entered.set(), release.wait(20)))
    await asyncio.to_thread(entered.wait, 20)
    assert engine.is_loaded
    assert engine.model is not None  # would wait for the thread, which is busy
    assert engine.reward is not None
    assert not release.is_set()
    release.set()
