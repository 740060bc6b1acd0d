"""User code that exits, cancels or interrupts fails its own request and no other."""

from __future__ import annotations

import asyncio
import math
import shutil
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

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
from stars_engine.algorithm.stars import StarsDecoding
from stars_engine.backends.base import DraftRequest
from stars_engine.core.autotune.cost_probe import probe_costs
from stars_engine.core.engine_core import EngineCore
from stars_engine.core.offline import stars
from stars_engine.core.request import Request, RequestQueue
from stars_engine.runtime.active_answers import ActiveAnswers
from stars_engine.runtime.engine_loop import EngineLoop
from stars_engine.schedules import FunctionSchedule, Progress
from stars_engine.testing import TableReward, TabularModel
from stars_engine.threads.worker_pool import Task, WorkerPool
from stars_engine.tokenization.codec import Codec
from stars_engine.types import RewardInput
from tests.support.marks import slow_but_each
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


@pytest.mark.parametrize(
    ("owner", "method"),
    [
        (EngineLoop, "_step"),
        (EngineLoop, "_read_inbox"),
        (ActiveAnswers, "deliver"),
        (EngineLoop, "_recover"),
    ],
)
def test_when_the_engine_thread_fails_all_requests_fail(
    engine: StarsEngine, monkeypatch: pytest.MonkeyPatch, owner: type, method: str
) -> None:
    config = StarsConfig(align=PLAIN)
    with StarsEngine(config, model=engine.model, reward=engine.reward) as mine:
        mine.generate("a", sampling=SHORT)

        def fail(*_: object) -> None:
            raise Odd("a mistake of ours")

        with monkeypatch.context() as patch:
            patch.setattr(owner, method, fail)
            if method == "_recover":
                patch.setattr(EngineCore, "step", fail)
            with pytest.raises(EngineClosedError, match="Odd: a mistake of ours"):
                mine.submit(["a"] * 3, sampling=LONG).result(timeout=AT_ONCE_S)
        for ask in (mine.submit, mine.generate, mine.stream):
            with pytest.raises(EngineClosedError, match=r"closed\. Hint: create a new"):
                ask("a", sampling=SHORT)


@pytest.mark.slow
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


# --- tokenizers ---

ALL_EXITS = [*EXITS, GeneratorExit("done")]


@pytest.fixture(params=slow_but_each(3, ALL_EXITS), ids=lambda error: type(error).__name__)
def exits_on_bad(
    request: pytest.FixtureRequest, engine: StarsEngine, monkeypatch: pytest.MonkeyPatch
) -> StarsEngine:
    """An engine with a tokenizer that exits when it encodes the word "bad"."""
    encode = Codec.encode

    def exit_on_bad(self: Codec, text: str) -> Any:
        if "bad" in text:
            raise request.param
        return encode(self, text)

    monkeypatch.setattr(Codec, "encode", exit_on_bad)
    return engine


def test_a_tokenizer_that_exits_fails_only_its_prompt(exits_on_bad: StarsEngine) -> None:
    future = exits_on_bad.submit(
        ["good", "bad", "good"], sampling=SHORT, align=PLAIN, return_exceptions=True
    )
    first, bad, last = future.result(timeout=AT_ONCE_S)
    assert first.text == last.text
    assert isinstance(bad, Exception)


def test_a_tokenizer_that_exits_while_texts_are_scored_fails_only_that_call(
    exits_on_bad: StarsEngine,
) -> None:
    with StarsEngine(
        StarsConfig(align=PLAIN), model=exits_on_bad.model, reward=exits_on_bad.reward
    ) as mine:
        mine.load()
        other = mine.submit("good", sampling=SHORT.replace(max_tokens=64))
        with pytest.raises(GenerationError, match="scoring failed"):
            asyncio.run(asyncio.wait_for(mine.ascore("bad", ["good"]), AT_ONCE_S))
        assert other.result(timeout=60)[0].text
        assert asyncio.run(mine.ascore("good", ["good"]))


# --- asynchronous models ---


class ExitingModel(TabularModel):
    """Answers at once, and exits for prompts that begin with token 1."""

    def __init__(self, error: BaseException, place: str) -> None:
        super().__init__(["a", "b"], lambda _: [0.5, 0.5])
        self._error, self._place = error, place
        self.cancelled: list[int] = []

    def submit(self, request: DraftRequest, reply: Callable[[Any], None]) -> Callable[[], object]:
        is_bad = request.token_ids[0] == 1
        if is_bad and self._place == "submit":
            raise self._error
        [draft] = self.draft([request])

        def cancel() -> None:
            self.cancelled.append(request.token_ids[0])
            raise self._error

        if self._place != "cancel":
            reply(draft)
        return cancel

    def is_end(self, token: int, sampling: SamplingParams) -> bool:
        if self._place == "is_end" and sampling.seed == 1:
            raise self._error
        return super().is_end(token, sampling)


def core_of(model: Any, posted: list[Callable[[], None]]) -> tuple[EngineCore, list[Request]]:
    """A core with a request of seed 0 and one of seed 1, whose prompts begin with these."""
    core = EngineCore(model, post=posted.append)
    requests = []
    for seed in range(2):
        sampling = SHORT.replace(seed=seed, temperature=1.0, top_k=None)
        align = PLAIN.replace(num_candidates=1)
        rollout = make_rollout(prompt_ids=(seed,), align=align, sampling=sampling)
        requests.append(Request(rollout, TableReward({}), StarsDecoding()))
        core.add(RequestQueue.of(requests[-1:]))
    return core, requests


@pytest.mark.parametrize("error", ALL_EXITS, ids=repr)
@pytest.mark.parametrize("place", ["submit", "is_end"])
def test_an_asynchronous_model_that_exits_fails_only_that_request(
    error: BaseException, place: str
) -> None:
    def run() -> None:
        for _ in range(100):
            core.step()
            while posted:
                posted.pop()()

    posted: list[Callable[[], None]] = []
    core, (good, bad) = core_of(ExitingModel(error, place), posted)
    in_thread(run)
    assert not core.has_unfinished
    assert isinstance(bad.rollout.error, GenerationError)
    assert good.rollout.error is None
    assert len(good.rollout.token_ids) == 8


def test_errors_of_cancelling_a_draft_affect_nobody() -> None:
    model = ExitingModel(Odd("odd"), "cancel")
    core, requests = core_of(model, [])
    core.step()
    core.abort([requests[0].rollout])
    core.close()
    assert model.cancelled == [0, 1]


def test_a_model_that_exits_while_costs_are_measured_ends_nothing() -> None:
    class Exiting(TabularModel):
        def draft(self, requests: Sequence[DraftRequest]) -> Any:
            raise SystemExit(3)

    assert probe_costs(Exiting(["a"], lambda _: [1.0])) == {}


def in_thread(work: Callable[[], None]) -> None:
    """Run on a worker thread, as the engine does: on the main thread Ctrl-C is the user's."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result(60)


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
