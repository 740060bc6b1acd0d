"""Failures of models and loads: which requests fail, and which go on."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from stars_engine import (
    EngineClosedError,
    FunctionSchedule,
    GenerationError,
    ModelLoadError,
    PromptError,
    RewardError,
    ScheduleError,
    StarsConfig,
    StarsEngine,
    StarsError,
    StarsResult,
    TransformersModel,
)
from stars_engine.backends.base import DraftRequest
from tests.support.engines import LONG, NEVER, SHORT, idle, wait_until, with_reward


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError("too many rows"), r"too many rows.*Hint: shorten the prompt"),
        (RuntimeError("too many rows"), r"too many rows.*max_rows"),
    ],
    ids=lambda item: type(item).__name__,
)
def test_a_failing_model_fails_only_the_running_requests(
    engine: StarsEngine, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    with StarsEngine(
        StarsConfig(align=engine.config.align), model=engine.model, reward=engine.reward
    ) as mine:
        expected = mine.generate("fine", sampling=SHORT)[0].text

        def fail(requests: object) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(engine.model, "draft", fail)
            with pytest.raises(GenerationError, match=words) as caught:
                mine.generate("x", sampling=SHORT)
        assert caught.value.result.finish_reason == "error"
        assert mine.generate("fine", sampling=SHORT)[0].text == expected
        assert idle(mine)


class Fragile:
    """A model that fails whenever one of the drafts is of a certain prompt, or a few times."""

    def __init__(self, model: Any, *, num_prompt_tokens: int = 0, num_failures: int = 0) -> None:
        self._model = model
        self._num_prompt_tokens, self._num_failures = num_prompt_tokens, num_failures
        self.num_calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def draft(self, requests: Sequence[DraftRequest]) -> Any:
        self.num_calls += 1
        if self.num_calls <= self._num_failures:
            raise RuntimeError("a passing fault")
        if any(request.num_prompt_tokens == self._num_prompt_tokens for request in requests):
            raise ValueError("this one is bad")
        return self._model.draft(requests)


@pytest.mark.slow
def test_only_the_request_with_the_failing_prompt_fails(engine: StarsEngine) -> None:
    prompts = ["The film", "I went to see it on a rainy day and", "Nobody", "A"]
    config = StarsConfig(align=engine.config.align, sampling=SHORT)
    with StarsEngine(config, model=engine.model, reward=engine.reward) as mine:
        wanted = mine.generate(prompts)
    longest = max(len(engine.model.codec.encode_prompt(prompt)) for prompt in prompts)
    fragile = Fragile(engine.model, num_prompt_tokens=longest)
    with StarsEngine(config, model=fragile, reward=engine.reward) as mine:  # type: ignore[arg-type]
        found = mine.generate(prompts, return_exceptions=True)
        assert isinstance(found[1], GenerationError)
        assert "ValueError: this one is bad" in str(found[1])
        assert found[1].result.finish_reason == "error"
        others = [0, 2, 3]
        assert [found[i].text for i in others] == [wanted[i].text for i in others]
        assert idle(mine)


def test_a_transient_fault_is_retried(engine: StarsEngine) -> None:
    config = StarsConfig(align=engine.config.align, sampling=SHORT)
    texts = []
    for num_failures in (0, 1):
        fragile = Fragile(engine.model, num_failures=num_failures)
        with StarsEngine(config, model=fragile, reward=engine.reward) as mine:  # type: ignore[arg-type]
            texts.append([result.text for result in mine.generate(["The film", "Nobody"])])
            assert mine.stats().num_failed == 0
    assert texts[0] == texts[1]


def test_a_failing_stream_raises_with_its_partial_result(engine: StarsEngine) -> None:
    def breaks(prompt: str, completion: str) -> float:
        if len(completion) > 40:
            raise OSError("gone")
        return 1.0

    with with_reward(engine, breaks) as mine:
        texts: list[str] = []
        with pytest.raises(RewardError) as caught:
            texts.extend(event.text for event in mine.stream("a", sampling=LONG))
        assert "".join(texts) == caught.value.result.text != ""


def test_a_callback_may_call_its_engine(engine: StarsEngine) -> None:
    texts: list[str] = []

    def call_back(_: object) -> None:
        texts.append(engine.generate("again", sampling=SHORT)[0].text)

    future = engine.submit("once", sampling=SHORT)
    future.add_done_callback(call_back)
    future.result()
    wait_until(lambda: bool(texts))
    assert texts == [engine.generate("again", sampling=SHORT)[0].text]


def test_a_schedule_cannot_wait_for_its_own_engine(engine: StarsEngine) -> None:
    def ask(_: object) -> float:
        return float(len(engine.generate("again", sampling=SHORT)))

    align = engine.config.align.replace(schedule=FunctionSchedule(function=ask))
    with pytest.raises(ScheduleError, match="from its own thread"):
        engine.generate("once", sampling=SHORT, align=align)


def test_a_bad_prompt_fails_a_call_before_any_work(engine: StarsEngine) -> None:
    num_steps = engine.stats().num_steps
    with pytest.raises(PromptError):
        engine.generate(["fine", "word " * 900], sampling=SHORT)
    assert engine.stats().num_steps == num_steps
    good, bad = engine.generate(["fine", "word " * 900], sampling=SHORT, return_exceptions=True)
    assert isinstance(good, StarsResult)
    assert isinstance(bad, PromptError)
    with pytest.raises(PromptError):  # not only at the first step
        engine.stream("word " * 900)


def test_callers_of_a_failed_load_share_its_error_and_the_next_tries_again() -> None:
    attempts: list[int] = []
    all_called = threading.Barrier(9)

    def load(config: StarsConfig) -> Any:
        attempts.append(len(attempts))
        if len(attempts) == 1:
            all_called.wait(60)
            wait_until(lambda: mine._runtime._loop._inbox.qsize() == 8)  # they wait for the load
        raise ModelLoadError("no such model")

    def call(mine: StarsEngine) -> Any:
        all_called.wait(60)
        return _error_of(mine)

    config = StarsConfig(align=NEVER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stars_engine.engine.handle._load_model", load)
        with StarsEngine(config) as mine, ThreadPoolExecutor(8) as pool:
            first = mine.submit("a")  # starts the load
            errors = [*pool.map(lambda _: call(mine), range(8)), first.exception()]
            assert all(isinstance(error, ModelLoadError) for error in errors)
            assert len(attempts) == 1
            assert isinstance(_error_of(mine), ModelLoadError)
            assert len(attempts) == 2


def test_callers_with_different_rewards_share_a_failed_load_of_the_model() -> None:
    attempts: list[int] = []
    submitted = threading.Event()

    def load(config: StarsConfig) -> Any:
        attempts.append(len(attempts))
        assert submitted.wait(60)
        raise ModelLoadError("no such model")

    model = TransformersModel(name_or_path="stars:embedded-lm", dtype="float64")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stars_engine.engine.handle._load_model", load)
        handles = [
            StarsEngine.shared(StarsConfig(model=model, reward=lambda p, c: 1.0, align=NEVER))
            for _ in range(4)
        ]
        futures = [handle.submit("a") for handle in handles]
        submitted.set()
        errors = [future.exception() for future in futures]
        assert [str(error) for error in errors] == ["no such model"] * 4
        assert len(set(map(id, errors))) == 4  # each may be raised with a traceback of its own
        assert len(attempts) == 1
        for handle in handles:
            handle.close()


def test_a_failed_load_frees_its_memory(engine: StarsEngine) -> None:
    class Half:
        pass

    halves: list[weakref.ref[Half]] = []

    def load(config: StarsConfig) -> Any:
        half = Half()
        halves.append(weakref.ref(half))
        try:
            raise OSError("the disk is gone")
        except OSError as error:
            raise ModelLoadError("no such model") from error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stars_engine.engine.handle._load_model", load)
        with StarsEngine(StarsConfig(align=NEVER)) as mine:
            assert isinstance(_error_of(mine), ModelLoadError)
            gc.collect()
            assert [half() for half in halves] == [None]


def test_repeated_errors_are_logged_once(
    engine: StarsEngine, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> float:
        raise OSError("unforeseen")

    mine = StarsEngine(
        StarsConfig(align=engine.config.align), model=engine.model, reward=engine.reward
    )
    mine.load()
    loop = mine._runtime._loop
    loop._sweep = fail
    loop.post(lambda: None)
    wait_until(lambda: mine._runtime._closed)
    assert isinstance(_error_of(mine), EngineClosedError)
    records = [record for record in caplog.records if "step failed" in record.message]
    assert len(records) == 1
    assert "unforeseen" in str(records[0].exc_info)
    mine.close()


def _error_of(engine: StarsEngine) -> Exception | None:
    try:
        engine.generate("a")
    except StarsError as error:
        return error
    return None
