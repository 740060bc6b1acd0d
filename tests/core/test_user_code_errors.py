"""User code that exits, cancels or interrupts fails its own request and no other."""

from __future__ import annotations

import asyncio
import math
import shutil
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

import pytest

import stars_engine
from stars_engine import (
    AlignParams,
    EngineClosedError,
    FunctionReward,
    GenerationError,
    ModelLoadError,
    NoSchedule,
    RewardError,
    SamplingParams,
    ScheduleError,
    StarsConfig,
    StarsEngine,
)
from stars_engine.core.engine_core import EngineCore
from stars_engine.core.offline import stars
from stars_engine.runtime.engine_loop import EngineLoop
from stars_engine.runtime.worker_pool import Task, WorkerPool
from stars_engine.schedules import FunctionSchedule, Progress
from stars_engine.testing import TabularModel
from stars_engine.types import RewardInput
from tests.support.rollouts import make_rollout

SHORT = SamplingParams(seed=3, max_tokens=8)
LONG = SamplingParams(seed=3, max_tokens=400)
PLAIN = AlignParams(schedule=NoSchedule(), segment_len=8)
AT_ONCE_S = 10.0  # far below any timeout that could end a request instead


class Odd(BaseException):
    """An exception outside `Exception`."""


class Unspeakable(Exception):  # noqa: N818 - its name is in no message
    """Has no message either."""

    def __str__(self) -> str:
        raise ValueError("no words")


EXITS = [SystemExit(3), asyncio.CancelledError("upstream"), KeyboardInterrupt(), Odd("odd")]


def judge(error: BaseException) -> Callable[[str, str], float]:
    def fail_on_bad(prompt: str, completion: str) -> float:
        if prompt == "bad":
            raise error
        return 1.0

    return fail_on_bad


class OnTheEnginesThread:
    """A custom reward model, which the engine thread calls."""

    def __init__(self, function: Callable[[str, str], float]) -> None:
        self.function = function

    def score(self, inputs: Sequence[RewardInput]) -> list[float]:
        return [self.function(item.prompt.text, item.text) for item in inputs]


@pytest.mark.slow
@pytest.mark.parametrize("error", [*EXITS, Unspeakable()], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("offloaded", [True, False])
def test_a_reward_that_exits_fails_only_its_request_at_once(
    engine: StarsEngine, error: BaseException, *, offloaded: bool
) -> None:
    function = judge(error)
    if offloaded:
        reward = FunctionReward(function=function, timeout_s=None, max_concurrency=1)
        mine = StarsEngine(
            StarsConfig(model="stars:embedded-lm", reward=reward, align=PLAIN), model=engine.model
        )
    else:
        config = StarsConfig(align=PLAIN)
        mine = StarsEngine(config, model=engine.model, reward=OnTheEnginesThread(function))
    with mine:
        future = mine.submit(["bad", "good"], sampling=SHORT, return_exceptions=True)
        bad, good = future.result(timeout=AT_ONCE_S)
        assert isinstance(bad, RewardError)
        assert bad.__cause__ is error
        assert type(error).__name__ in str(bad)
        assert good.reward == 1.0
        [again] = mine.submit("good", sampling=SHORT).result(timeout=AT_ONCE_S)
        assert again.text == good.text


def test_ctrl_c_in_a_reward_on_the_thread_of_the_caller_reaches_the_caller() -> None:
    assert threading.current_thread() is threading.main_thread()
    model = TabularModel(["a", "b"], lambda _: [0.5, 0.5])
    reward = OnTheEnginesThread(judge(KeyboardInterrupt()))
    rollout = make_rollout(align=PLAIN, sampling=SHORT)
    rollout.reward_prompt = rollout.reward_prompt.__class__("bad")
    with pytest.raises(KeyboardInterrupt):
        list(stars([rollout], model, reward))


def test_a_schedule_that_exits_fails_only_its_request(engine: StarsEngine) -> None:
    def exit_process(progress: object) -> float:
        raise SystemExit(3)

    bad = AlignParams(schedule=FunctionSchedule(function=exit_process), segment_len=8)
    future = engine.submit("a", sampling=SHORT, align=bad)
    with pytest.raises(ScheduleError, match="SystemExit: 3"):
        future.result(timeout=AT_ONCE_S)
    assert engine.generate("a", sampling=SHORT, align=PLAIN)[0].text


@pytest.mark.parametrize("code", ["1 / 0", "import sys; sys.exit(3)", "f = 1 +", "None.f"])
def test_a_module_that_cannot_be_imported(
    engine: StarsEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "breaks_on_import.py").write_text(code)
    monkeypatch.delitem(sys.modules, "breaks_on_import", raising=False)
    reward = FunctionReward(function="breaks_on_import:f")
    config = StarsConfig(model="stars:embedded-lm", reward=reward, align=PLAIN)
    with StarsEngine(config, model=engine.model) as mine:
        future = mine.submit("a", sampling=SHORT)
        with pytest.raises(ModelLoadError, match=r"breaks_on_import.*Error|SystemExit") as caught:
            future.result(timeout=AT_ONCE_S)
    assert "Hint" in str(caught.value)
    schedule = FunctionSchedule(function="breaks_on_import:f")
    with pytest.raises(ScheduleError, match=r"breaks_on_import"):
        engine.generate("a", sampling=SHORT, align=PLAIN.replace(schedule=schedule))


def test_a_function_as_schedule(engine: StarsEngine) -> None:
    def rising(progress: Progress) -> float:
        return float(progress.num_tokens)

    schedules = [FunctionSchedule(function=rising), FunctionSchedule(function=math.sin)]
    assert len({schedule.content_hash() for schedule in schedules}) == 2
    align = AlignParams(schedule=schedules[0], segment_len=4, max_attempts=2)
    [result] = engine.generate("a", sampling=SHORT, align=align)
    assert [segment.threshold for segment in result.segments] == [4.0, 8.0]
    assert result.schedule_hash == FunctionSchedule(function=rising).content_hash()


def test_loading_that_exits(monkeypatch: pytest.MonkeyPatch) -> None:
    def exit_process(config: object) -> None:
        raise SystemExit(3)

    monkeypatch.setattr("stars_engine.engine.handle._load_model", exit_process)
    with StarsEngine() as mine:
        with pytest.raises(ModelLoadError, match="SystemExit: 3"):
            mine.submit("a").result(timeout=AT_ONCE_S)
        with pytest.raises(ModelLoadError, match="SystemExit: 3"):
            mine.load()


@pytest.mark.parametrize("method", ["draft", "completion_text"])
def test_a_model_that_exits_fails_the_running_requests(
    engine: StarsEngine, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def exit_process(*_: object) -> None:
        raise SystemExit(3)

    with StarsEngine(StarsConfig(align=PLAIN), model=engine.model, reward=engine.reward) as mine:
        with monkeypatch.context() as patch:
            patch.setattr(engine.model, method, exit_process)
            with pytest.raises(GenerationError, match="SystemExit: 3"):
                mine.submit("a", sampling=SHORT).result(timeout=AT_ONCE_S)
        assert mine.generate("a", sampling=SHORT)[0].text


def test_a_callback_that_exits_affects_no_other_request(engine: StarsEngine) -> None:
    def exit_process(_: Future[object]) -> None:
        raise SystemExit(3)

    first = engine.submit("first", sampling=SHORT)
    first.add_done_callback(exit_process)
    second = engine.submit("second", sampling=SHORT)
    assert first.result(timeout=AT_ONCE_S)[0].text
    assert second.result(timeout=AT_ONCE_S)[0].text
    assert engine.generate("third", sampling=SHORT)[0].text


@pytest.mark.parametrize("method", ["_step", "_read_inbox", "_deliver", "_recover"])
def test_when_the_engine_thread_fails_all_requests_fail(
    engine: StarsEngine, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    config = StarsConfig(align=PLAIN)
    with StarsEngine(config, model=engine.model, reward=engine.reward) as mine:
        mine.generate("a", sampling=SHORT)

        def fail(*_: object) -> None:
            raise Odd("a mistake of ours")

        with monkeypatch.context() as patch:
            patch.setattr(EngineLoop, method, fail)
            if method == "_recover":
                patch.setattr(EngineCore, "step", fail)
            with pytest.raises(EngineClosedError, match="Odd: a mistake of ours"):
                mine.submit(["a"] * 3, sampling=LONG).result(timeout=AT_ONCE_S)
        for ask in (mine.submit, mine.generate, mine.stream):
            with pytest.raises(EngineClosedError, match=r"closed\. Hint: create a new"):
                ask("a", sampling=SHORT)


def test_a_shared_engine_whose_thread_failed_is_recreated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # A checkpoint of its own, so that no runtime of another test, whose thread waits, is shared.
    copy = shutil.copytree(Path(stars_engine.__file__).parent / "embedded" / "lm", tmp_path / "lm")
    config = StarsConfig(model=str(copy), reward="stars:embedded-reward", align=PLAIN)
    with StarsEngine.shared(config) as broken:
        with monkeypatch.context() as patch:
            patch.setattr(EngineLoop, "_wait_s", lambda _: 1 / 0)
            with pytest.raises(EngineClosedError, match="ZeroDivisionError"):
                broken.submit("a", sampling=LONG).result(timeout=60)
        with StarsEngine.shared(config) as repaired:
            assert repaired.generate("a", sampling=SHORT)[0].text


def test_a_worker_outlives_its_tasks() -> None:
    workers = WorkerPool("test", max_workers=1)
    done = threading.Event()

    def exit_process(_: Task) -> None:
        raise Odd

    for work in (exit_process, lambda _: done.set()):
        workers.submit(
            Task(
                work,
                owner="somebody",
                timeout_s=None,
                on_timeout=lambda _: None,
                is_wanted=lambda: True,
            )
        )
    assert done.wait(AT_ONCE_S)
    workers.close()
    workers.join(AT_ONCE_S)
