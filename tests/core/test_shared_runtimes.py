"""Shared runtimes: one load, reference counts, keep-alive, copies and pickles."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import llamaindex_stars
from stars_engine import (
    AlignParams,
    ConfigError,
    ConstantSchedule,
    EngineClosedError,
    EngineParams,
    NoSchedule,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    TransformersModel,
)
from stars_engine.backends.base import PromptedModel
from stars_engine.runtime import registry
from stars_engine.runtime.engine_loop import EngineLoop
from tests.support.engines import NEVER, wait_until

SHORT = SamplingParams(seed=3, max_tokens=8)


@pytest.fixture
def loads(engine: StarsEngine) -> Iterator[list[StarsConfig]]:
    """Count loads, and return the model that is already loaded, so that they are quick."""
    loaded: list[StarsConfig] = []
    close_shared()

    def load(config: StarsConfig) -> PromptedModel:
        loaded.append(config)
        return engine.model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stars_engine.engine.handle._load_model", load)
        yield loaded
        close_shared()
    assert not registry._runtimes


def close_shared() -> None:
    gc.collect()  # engines of other tests end now, not in the middle of a count
    for runtime in list(registry._runtimes.values()):
        runtime.close()


def engine_threads() -> int:
    return sum(thread.name == "stars-engine" for thread in threading.enumerate())


@pytest.mark.slow
def test_many_threads_load_once(loads: list[StarsConfig]) -> None:
    barrier = threading.Barrier(16)

    def ask(index: int) -> str:
        barrier.wait()
        mine = StarsEngine.shared()
        text: str = mine.generate("This movie", sampling=SHORT)[0].text
        return text

    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(ask, range(16)))) == 1
    assert len(loads) == 1


@pytest.mark.slow
def test_loaded_models_determine_the_runtime(loads: list[StarsConfig]) -> None:
    base = StarsConfig()
    other_align = base.replace(align=AlignParams(schedule=NoSchedule()))
    other_reward = StarsConfig(
        model="stars:embedded-lm",
        reward=lambda prompt, completion: float(len(completion)),
        align=AlignParams(schedule=ConstantSchedule(value=0)),
    )
    other_model = base.replace(
        model=TransformersModel(name_or_path="stars:embedded-lm", dtype="float64")
    )
    handles = [StarsEngine.shared(c) for c in (base, other_align, other_reward, other_model)]
    results = [handle.generate("a", sampling=SHORT)[0] for handle in handles]
    assert len(loads) == 2  # rewards and thresholds do not need the language model again
    assert results[2].reward == len(results[2].text)
    assert handles[0].stats().num_finished == 3


@pytest.mark.slow
def test_the_last_close_unloads_the_models_and_ends_the_thread(loads: list[StarsConfig]) -> None:
    before = engine_threads()
    first, second = StarsEngine.shared(), StarsEngine.shared()
    first.generate("a", sampling=SHORT)
    assert engine_threads() == before + 1
    first.close()
    first.close()
    with pytest.raises(EngineClosedError):
        first.generate("a")
    assert second.generate("a", sampling=SHORT)[0].text
    second.close()
    assert engine_threads() == before
    with StarsEngine.shared() as third:
        third.generate("a", sampling=SHORT)
    assert len(loads) == 2


@pytest.mark.slow
def test_garbage_collected_handles_keep_the_models_for_a_while(loads: list[StarsConfig]) -> None:
    for _ in range(3):  # as objects made anew for every request do
        StarsEngine.shared().generate("a", sampling=SHORT)
        gc.collect()
    assert len(loads) == 1
    close_shared()
    before = engine_threads()
    config = StarsConfig(engine=EngineParams(keep_alive_s=0.2))
    StarsEngine.shared(config).generate("a", sampling=SHORT)
    gc.collect()
    wait_until(lambda: engine_threads() == before and not registry._runtimes)


@pytest.mark.slow
def test_adapters_get_a_new_engine_when_the_thread_has_failed(
    loads: list[StarsConfig], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    llm = llamaindex_stars.StarsLLM(seed=3, max_tokens=8)
    with monkeypatch.context() as patch:
        patch.setattr(EngineLoop, "run", lambda self: 1 / 0)
        with pytest.raises(EngineClosedError, match="by zero"):
            llm.complete("a")
    failed = llm._engines[0]
    wait_until(lambda: failed.closed)
    assert "The engine's thread failed" in caplog.text
    with pytest.raises(EngineClosedError, match="closed"):
        failed.generate("a")
    assert llm.complete("a").text
    assert len(llm._engines) == 1


@pytest.mark.slow
def test_an_unused_reward_is_unloaded(loads: list[StarsConfig]) -> None:
    config = StarsConfig(
        model="stars:embedded-lm",
        reward=lambda prompt, completion: 1.0,
        align=AlignParams(schedule=NoSchedule()),
    )
    keeper, short_lived = StarsEngine.shared(), StarsEngine.shared(config)
    keeper.generate("a", sampling=SHORT)
    before = set(threading.enumerate())
    short_lived.generate("a", sampling=SHORT)
    workers = [t for t in threading.enumerate() if t not in before and "lambda" in t.name]
    assert workers
    short_lived.close()
    wait_until(lambda: not any(worker.is_alive() for worker in workers))
    assert keeper.generate("a", sampling=SHORT)[0].text
    keeper.close()


@pytest.mark.slow
def test_an_unused_reward_is_unloaded_while_the_engine_is_busy(loads: list[StarsConfig]) -> None:
    def forgotten_reward(prompt: str, completion: str) -> float:
        return 1.0

    def workers() -> list[threading.Thread]:
        return [t for t in threading.enumerate() if "forgotten_reward" in t.name]

    params = EngineParams(keep_alive_s=0.1)
    config = StarsConfig(
        model="stars:embedded-lm",
        reward=forgotten_reward,
        align=AlignParams(schedule=NoSchedule()),
        engine=params,
    )
    with StarsEngine.shared(StarsConfig(engine=params)) as keeper:
        future = keeper.submit("a", sampling=SHORT.replace(max_tokens=400), align=NEVER)
        StarsEngine.shared(config).generate("a", sampling=SHORT)
        assert workers()
        gc.collect()
        wait_until(lambda: not workers())
        assert not future.done()
        future.cancel()


@pytest.mark.slow
def test_other_limits_apply_once_the_runtime_is_unused(
    loads: list[StarsConfig],
) -> None:
    def engine_of(max_rows: int) -> StarsEngine:
        return StarsEngine.shared(StarsConfig(engine=EngineParams(max_rows=max_rows)))

    before = engine_threads()
    engine_of(7)  # never used
    gc.collect()
    engine_of(8).generate("a", sampling=SHORT)
    gc.collect()
    with engine_of(9) as mine:
        assert mine.generate("a", sampling=SHORT)[0].text
        with pytest.raises(ConfigError):
            engine_of(8)
        wait_until(lambda: engine_threads() == before + 1)
        future = mine.submit("a", sampling=SHORT.replace(max_tokens=400), align=NEVER)
    assert isinstance(future.exception(timeout=10), EngineClosedError)


@pytest.mark.slow
def test_loads_of_several_runtimes_do_not_disturb_each_other() -> None:
    barrier = threading.Barrier(6)

    def load(_: int) -> StarsEngine:
        barrier.wait()
        return StarsEngine().load()

    with ThreadPoolExecutor(6) as pool:
        engines = list(pool.map(load, range(6)))
    texts = {engine.generate("This movie", sampling=SHORT)[0].text for engine in engines}
    assert len(texts) == 1
    for engine in engines:
        engine.close()


def test_paths_are_compared_after_resolution(tmp_path: Path, monkeypatch: Any) -> None:
    def key(path: str) -> str:
        return registry.key_of(TransformersModel(name_or_path=path))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert key("./a") == key(f"{tmp_path}/b/../a") == key("~/a")
    assert key("a") != key("./a")  # a name on the hub
    before = key("./a")
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "b")
    assert key("./a") != before == key("../a")


def test_closing_fails_running_requests(loads: list[StarsConfig]) -> None:
    mine = StarsEngine.shared()
    futures = [mine.submit("a", sampling=SHORT, align=NEVER) for _ in range(3)]
    wait_until(lambda: mine.stats().num_active == 3)
    mine.close()
    for future in futures:
        with pytest.raises(EngineClosedError, match="result") as caught:
            future.result(timeout=10)
        assert caught.value.result.finish_reason == "error"


def test_other_limits_are_refused(loads: list[StarsConfig]) -> None:
    with StarsEngine.shared():
        with pytest.raises(ConfigError, match=r"engine\.max_rows: 7 .* 128"):
            StarsEngine.shared(StarsConfig(engine=EngineParams(max_rows=7)))
        StarsEngine.shared(StarsConfig(engine=EngineParams(on_full="raise"))).close()


def test_copies_and_pickles_share_the_runtime(loads: list[StarsConfig]) -> None:
    mine = StarsEngine.shared()
    expected = mine.generate("a", sampling=SHORT)[0].text
    again = [copy.copy(mine), copy.deepcopy(mine), pickle.loads(pickle.dumps(mine))]
    for other in again:
        assert other is not mine
        assert other.generate("a", sampling=SHORT)[0].text == expected
    assert len(loads) == 1
    for other in [mine, *again]:
        other.close()
    private = StarsEngine(StarsConfig())
    assert pickle.loads(pickle.dumps(private)).config == private.config


def test_custom_parts_cannot_be_pickled(engine: StarsEngine) -> None:
    mine = StarsEngine(StarsConfig(align=AlignParams(schedule=NoSchedule())), model=engine.model)
    with pytest.raises(TypeError, match="Hint"):
        pickle.dumps(mine)


def test_live_models_are_distinguished_and_not_copied(engine: StarsEngine) -> None:
    loaded: Any = engine.model
    config = StarsConfig(
        model=TransformersModel(model=loaded.model, tokenizer=loaded.codec.tokenizer),
        reward=lambda prompt, completion: 1.0,
        align=AlignParams(schedule=NoSchedule()),
    )
    with StarsEngine.shared(config) as one, StarsEngine.shared(config) as two:
        one.generate("a", sampling=SHORT)
        assert two.stats().num_finished == 1
        assert copy.deepcopy(config).model.model is loaded.model
