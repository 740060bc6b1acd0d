"""A batch that takes longer than one part of a step is paused, and shorter ones go before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from stars_engine import (
    AlignParams,
    ConstantSchedule,
    NoSchedule,
    RegexGrammar,
    SamplingParams,
    StarsConfig,
    StarsEngine,
)
from stars_engine.algorithm.candidate import Draft
from stars_engine.algorithm.stars import StarsDecoding
from stars_engine.backends.base import DraftRequest, Parts, Pause
from stars_engine.core.engine_core import EngineCore
from stars_engine.core.request import Request, RequestQueue, RequestStatus
from stars_engine.core.scheduler import Scheduler
from stars_engine.errors import GenerationError, Interrupted
from stars_engine.runtime import core_factory
from stars_engine.testing import TableReward, TabularModel
from stars_engine.types import RewardInput, Score
from tests.support.accounts import account
from tests.support.backends import random_backend
from tests.support.engines import wait_until
from tests.support.rollouts import make_rollout

LONG, SHORT = 64, 4  # tokens of a segment


class Pausing(TabularModel):
    """Drafts a token of each row between two pauses; a callable may raise before each."""

    def __init__(self, before: Callable[[Sequence[DraftRequest]], None] | None = None) -> None:
        super().__init__(("a", "b"), lambda _: (0.5, 0.5))
        self._before = before
        self.num_open = 0  # drafts that were begun and not ended
        self.drafted: list[int] = []  # prompts of the drafts that were made
        self.pause_of: Callable[[int, Sequence[DraftRequest]], Any] = lambda left, _: Pause(left)
        self.error_of_closing: BaseException | None = None

    def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]:
        raise AssertionError("the engine prefers to draft in parts")

    def draft_in_parts(self, requests: Sequence[DraftRequest]) -> Parts:
        self.num_open += 1
        try:
            for request in requests:
                request.handle.cached = "a prefix"
            for left in range(max(len(each.uniforms) for each in requests) - 1, 0, -1):
                if self._before is not None:
                    self._before(requests)
                yield self.pause_of(left, requests)
            self.drafted += [request.token_ids[0] for request in requests]
            return super().draft(requests)
        except GeneratorExit:
            if self.error_of_closing is not None:
                raise self.error_of_closing from None
            raise
        finally:
            self.num_open -= 1


def request_of(prompt: int, segment_len: int, *, max_tokens: int = 0, **align: Any) -> Request:
    settings = AlignParams(
        schedule=NoSchedule(), segment_len=segment_len, num_candidates=1, **align
    )
    sampling = SamplingParams(max_tokens=max_tokens or segment_len, temperature=1.0, top_k=None)
    rollout = make_rollout(prompt_ids=(prompt,), align=settings, sampling=sampling)
    return Request(rollout, TableReward({}), StarsDecoding())


def core_of(model: Any, *requests: Request, **more: Any) -> EngineCore:
    core = EngineCore(model, Scheduler(**more), part_s=0.0)
    for request in requests:
        core.add(RequestQueue.of([request]))
    return core


def finish(core: EngineCore, num_steps: int = 10_000) -> None:
    for _ in range(num_steps):
        if not core.has_unfinished:
            return
        core.step()
    raise AssertionError("the requests do not end")


def paused(model: Any, **more: Any) -> tuple[EngineCore, Request]:
    """A core whose only batch is paused, and the request in it."""
    long = request_of(0, LONG)
    core = core_of(model, long, **more)
    core.step()
    assert long.status is RequestStatus.WAITING_FOR_DRAFT
    assert core.has_work()
    return core, long


def test_a_short_request_does_not_wait_for_a_long_draft() -> None:
    model = Pausing()
    core, long = paused(model)
    short = request_of(1, SHORT, max_tokens=4 * SHORT)
    core.add(RequestQueue.of([short]))
    num_steps = 0
    while not short.rollout.finished:
        core.step()
        num_steps += 1
    assert long.status is RequestStatus.WAITING_FOR_DRAFT
    assert num_steps <= 2 * 4 * SHORT  # a part of the long draft for each part of its own
    finish(core)
    assert model.drafted == [1, 1, 1, 1, 0]
    assert len(long.rollout.text) == LONG


def test_a_request_with_drafts_as_long_waits_and_shares_the_next_batch() -> None:
    model = Pausing()
    core, _ = paused(model)
    core.add(RequestQueue.of([request_of(1, LONG)]))
    finish(core)
    assert model.drafted == [0, 1]


def test_few_batches_are_paused() -> None:
    core, _ = paused(Pausing())
    lengths = [30, 14, 6, 2]
    requests = [request_of(1 + index, size) for index, size in enumerate(lengths)]
    for request in requests:
        core.add(RequestQueue.of([request]))
    for _ in range(8):
        core.step()
    waiting = [each for each in requests if each.status is RequestStatus.WAITING_FOR_DRAFT]
    assert len(waiting) == 1  # beside the first
    finish(core)


def test_a_batch_beside_a_paused_one_has_a_quarter_of_the_rows() -> None:
    model = Pausing()
    core, _ = paused(model, max_rows=8)
    core.add(RequestQueue.of([request_of(1 + index, SHORT) for index in range(8)]))
    sizes = []
    while core.scheduler.in_progress[0].status is not RequestStatus.FINISHED:
        core.step()
        sizes.append(model.num_open)
        if len(model.drafted) >= 2:
            break
    assert model.drafted == [1, 2]
    finish(core)


def texts_of(model: Any, part_s: float) -> list[Any]:
    """Drafts with rejections, of several lengths, that come one after the other."""
    requests = []
    for index, (size, max_tokens) in enumerate([(24, 48), (3, 12), (8, 30), (24, 30), (2, 9)]):
        align = AlignParams(
            schedule=ConstantSchedule(value=0.5),
            beta=0.2,
            segment_len=size,
            num_candidates=2,
            max_attempts=6,
            lookahead=index % 2,
        )
        sampling = SamplingParams(max_tokens=max_tokens, temperature=1.0, top_k=None)
        rollout = make_rollout(prompt_ids=(1, 5 + index, 7), align=align, sampling=sampling)
        requests.append(Request(rollout, _Parity(), StarsDecoding()))
    core = EngineCore(model, part_s=part_s)
    for request in requests:
        core.add(RequestQueue.of([request]))
        for _ in range(5):
            core.step()
    finish(core)
    results = [request.rollout.result() for request in requests]
    assert sum(result.usage.num_attempts for result in results) > 10
    return [account(result) for result in results]


class _Parity:
    """A reward that changes with every character."""

    def score(self, inputs: Sequence[RewardInput]) -> list[Score]:
        return [Score(float(len(item.text) % 2)) for item in inputs]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_texts_do_not_depend_on_pauses(family: str, tokenizer: object) -> None:
    whole = texts_of(random_backend(family, tokenizer), math.inf)
    assert texts_of(random_backend(family, tokenizer), 0.0) == whole


@pytest.mark.slow
def test_a_small_call_is_answered_within_the_segment_of_another(
    engine: StarsEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core_factory, "PART_S", 0.0)
    plain = AlignParams(schedule=NoSchedule(), num_candidates=1, segment_len=300)
    calls = [
        {"prompts": "This movie", "sampling": SamplingParams(seed=1, max_tokens=300)},
        {"prompts": "A", "sampling": SamplingParams(seed=2, max_tokens=8)},
    ]
    with StarsEngine(StarsConfig(align=plain), model=engine.model, reward=engine.reward) as mine:
        long = mine.submit(**calls[0])
        wait_until(lambda: mine.stats().num_active == 1)
        [small] = mine.generate(**calls[1])
        assert not long.done()
        found = [long.result()[0], small]
        assert len(found[0].segments) == 1
        alone = [mine.generate(**call)[0] for call in calls]
    assert [account(result) for result in found] == [account(result) for result in alone]


# --- what ends while a batch is paused ---


def test_a_cancelled_request_gives_up_its_paused_batch() -> None:
    model = Pausing()
    core, long = paused(model)
    long.rollout.finish("cancelled")
    core.abort([long.rollout])
    assert long.status is RequestStatus.FINISHED
    core.add(RequestQueue.of([request_of(1, SHORT)]))
    finish(core)
    assert model.drafted == [1]
    while core.has_work():
        core.step()
    assert model.num_open == 0


def test_others_of_a_paused_batch_go_on_when_one_is_cancelled() -> None:
    model = Pausing()
    gone, kept = (request_of(index, LONG) for index in range(2))
    core = core_of(model, gone, kept)
    core.step()
    gone.rollout.finish("cancelled")
    core.abort([gone.rollout])
    finish(core)
    assert len(kept.rollout.text) == LONG
    assert gone.rollout.text == ""


def test_a_deadline_passes_while_a_batch_is_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    core, long = paused(Pausing())
    monkeypatch.setattr(Request, "past_deadline", property(lambda self: self is long))
    core.end_overdue()
    assert [event.result.finish_reason for _, event in core.take_events()] == ["deadline"]
    assert long.status is RequestStatus.FINISHED


def test_closing_gives_up_paused_batches() -> None:
    model = Pausing()
    core, _ = paused(model)
    core.close()
    assert model.num_open == 0


# --- failures ---


def test_a_paused_batch_whose_model_fails_is_drafted_again() -> None:
    failures = [None, None, ValueError("a"), None]

    def fail(_: Sequence[DraftRequest]) -> None:
        if failures and (error := failures.pop(0)):
            raise error

    model = Pausing(fail)
    core, long = paused(model)
    finish(core)
    assert model.drafted == [0]
    assert long.rollout.error is None


@pytest.mark.parametrize("kind", [ValueError, SystemExit, GeneratorExit, StopIteration])
def test_only_the_request_for_which_the_model_fails_ends(kind: type[BaseException]) -> None:
    def fail(requests: Sequence[DraftRequest]) -> None:
        if any(request.token_ids[0] == 1 for request in requests):
            raise kind

    requests = [request_of(index, LONG) for index in range(4)]
    core = core_of(Pausing(fail), *requests)
    finish(core)
    failed = [type(request.rollout.error) for request in requests]
    assert failed == [type(None), GenerationError, type(None), type(None)]


@pytest.mark.parametrize(
    "pause",
    [None, "a", Draft((0,) * LONG), Pause(-1), Pause(10**400), Pause(3, object())],  # type: ignore[arg-type]
    ids=["none", "text", "draft", "negative", "huge", "waits for an object"],
)
def test_a_model_that_yields_no_pause_fails_only_its_request(pause: object) -> None:
    model = Pausing()
    model.pause_of = lambda left, requests: (
        pause if any(each.token_ids[0] == 1 for each in requests) else Pause(left)
    )
    requests = [request_of(index, LONG) for index in range(4)]
    finish(core_of(model, *requests))
    failed = [type(request.rollout.error) for request in requests]
    assert failed == [type(None), GenerationError, type(None), type(None)]
    assert [len(requests[index].rollout.text) for index in (0, 2, 3)] == [LONG] * 3


@pytest.mark.parametrize("error", [ValueError(), MemoryError(), SystemExit(3)], ids=repr)
@pytest.mark.parametrize("how", ["cancelled", "closed", "out of memory"])
def test_an_error_of_closing_a_draft_affects_nobody(
    how: str, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Sequence[DraftRequest]) -> None:
        if how == "out of memory" and model.num_open > 1:
            raise MemoryError

    model = Pausing(fail)
    model.error_of_closing = error
    core, long = paused(model)
    short = request_of(1, SHORT)
    core.add(RequestQueue.of([short]))
    if how == "closed":
        core.close()
    elif how == "cancelled":
        long.rollout.finish("cancelled")
        core.abort([long.rollout])
    while how != "closed" and core.has_work():
        core.step()
    assert model.num_open == 0
    assert "Closing a draft failed" in caplog.text
    if how != "closed":
        assert model.drafted == ([1] if how == "cancelled" else [1, 0])
        assert len(short.rollout.text) == SHORT


def test_a_paused_batch_is_given_up_when_memory_runs_out() -> None:
    """It is drafted again afterwards, and not paused."""

    def fail(requests: Sequence[DraftRequest]) -> None:
        if model.num_open > 1:
            raise MemoryError

    model = Pausing(fail)
    core, long = paused(model)
    short = request_of(1, SHORT)
    core.add(RequestQueue.of([short]))
    finish(core)
    assert model.drafted == [1, 0]
    assert [len(each.rollout.text) for each in (long, short)] == [LONG, SHORT]
    assert all(each.rollout.error is None for each in (long, short))


def test_memory_that_runs_out_after_a_pause_preempts_requests_of_the_batch() -> None:
    def fail(requests: Sequence[DraftRequest]) -> None:
        holding = {request.handle for request in requests}
        others = {each.handle for each in pair if each.holds_prefix} - holding
        if len(holding | others) > 1 and steps > 2:
            raise MemoryError

    steps = 0
    pair = [request_of(index, LONG) for index in range(2)]
    core = core_of(Pausing(fail), *pair)
    while core.has_unfinished:
        core.step()
        steps += 1
        assert steps < 1000
    assert [len(each.rollout.text) for each in pair] == [LONG, LONG]


def test_a_model_that_gives_up_ends_the_step() -> None:
    def fail(_: Sequence[DraftRequest]) -> None:
        if interrupted:
            raise Interrupted

    interrupted: list[bool] = []
    core, _ = paused(Pausing(fail))
    interrupted.append(True)
    with pytest.raises(Interrupted):
        core.step()


def test_no_step_waits_for_what_another_thread_computes() -> None:
    """Two drafts wait for slow masks; a short request goes on, and the engine is idle after it."""
    futures = [Future[None]() for _ in range(3)]
    model = Pausing()
    model.pause_of = lambda left, asked: Pause(left, futures[asked[0].token_ids[0]])
    futures[2].set_result(None)
    posted: list[Callable[[], None]] = []
    core = EngineCore(model, Scheduler(), part_s=0.0, post=posted.append)
    for prompt in range(3):
        core.add(RequestQueue.of([request_of(prompt, LONG if prompt < 2 else SHORT)]))
        core.step()
    for _ in range(20):
        core.step()
    assert model.drafted == [2]
    assert core.has_unfinished
    assert not core.has_work()
    num_posted = len(posted)
    for future in futures[:2]:
        future.set_result(None)
    assert len(posted) == num_posted + 2  # the engine's thread wakes
    finish(core)
    assert sorted(model.drafted) == [0, 1, 2]


def test_a_cancelled_draft_that_waits_is_given_up() -> None:
    future: Future[None] = Future()
    model = Pausing()
    model.pause_of = lambda left, _: Pause(left, future)
    core = EngineCore(model, Scheduler(), part_s=0.0, post=lambda _: None)
    request = request_of(0, LONG)
    core.add(RequestQueue.of([request]))
    core.step()
    assert not core.has_work()
    core.abort([request.rollout])
    assert core.has_work()
    core.step()
    assert model.num_open == 0
    assert not core.has_work()


def test_requests_whose_masks_may_be_slow_have_a_batch_of_their_own() -> None:
    model = Pausing()
    requests = [request_of(prompt, SHORT, max_tokens=2 * SHORT) for prompt in range(3)]
    with_grammar = requests[1]
    grammar = RegexGrammar(pattern="[ab]*")
    with_grammar.rollout.sampling = with_grammar.rollout.sampling.replace(grammar=grammar)
    core = EngineCore(model, Scheduler())
    core.add(RequestQueue.of(requests))
    core.step()
    assert model.drafted == [0, 2]
    core.step()
    assert model.drafted == [0, 2, 1]
    assert with_grammar.has_quick_masks  # from now on they share the batch of the others
    core.step()
    assert sorted(model.drafted[3:]) == [0, 1, 2]
    with_grammar.waited_for_masks = True
    assert not with_grammar.has_quick_masks
