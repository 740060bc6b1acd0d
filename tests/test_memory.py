"""When memory ends: less at a time, later, the same text; budgets that keep it from ending."""

from __future__ import annotations

import gc
import logging
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from typing import Any

import pytest
import torch

from stars_engine import (
    AlignParams,
    ConfigError,
    ConstantSchedule,
    EngineParams,
    GenerationError,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    StarsResult,
    calibrate,
)
from stars_engine.backends.transformers import TransformersBackend
from stars_engine.errors import ContextOverflowError
from stars_engine.memory import in_smaller_batches, is_out_of_memory
from stars_engine.places import Places
from stars_engine.testing import TabularModel
from tests.account_parts import account
from tests.backend_parts import pool_of
from tests.calibration_parts import OPENINGS, QUICK
from tests.conftest import make_rollout
from tests.test_runtime import wait_until

PROMPTS = ["The film", "I went to see it on a rainy day and", "Nobody", "A", "One more of them"]
SAMPLING = SamplingParams(seed=11, max_tokens=24)
ALIGN = AlignParams(schedule=ConstantSchedule(value=1.0), segment_len=8, num_candidates=4)
FULL = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: not enough memory"


class Scarce:
    """A model on a machine with little memory: for prefixes, for rows, or at chosen commits.

    Args:
        model: The model.
        num_prefixes: That fit at once.
        num_rows: That fit at once.
        failing: Commits that find no memory, counted from 0.
    """

    def __init__(
        self,
        model: TransformersBackend,
        *,
        num_prefixes: int = 100,
        num_rows: int = 100,
        failing: Sequence[int] = (),
    ) -> None:
        self._model = model
        self._num_prefixes, self._num_rows, self._failing = num_prefixes, num_rows, failing
        self._live: weakref.WeakSet[Any] = weakref.WeakSet()
        self.num_commits = self.num_prefills = self.most_live = 0
        self.row_counts: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    # Since Python 3.12, a protocol is not met by names that `__getattr__` finds.

    @property
    def bytes_per_token(self) -> int:
        return self._model.bytes_per_token

    def limit_cache(self, max_bytes: int | None) -> None:
        self._model.limit_cache(max_bytes)

    def drop_unused(self) -> None:
        self._model.drop_unused()

    def look_at_weights(self) -> None:
        self._model.look_at_weights()

    def prefill(self, prompts: Sequence[Sequence[int]]) -> list[Any]:
        if len(self._live) + len(prompts) > self._num_prefixes:
            gc.collect()
        if len(self._live) + len(prompts) > self._num_prefixes:
            raise RuntimeError(FULL)
        self.num_prefills += len(prompts)
        slots = self._model.prefill(prompts)
        self._live.update(slots)
        self.most_live = max(self.most_live, len(self._live))
        return slots

    def draft(self, requests: Sequence[Any]) -> Any:
        if len(requests) > self._num_rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.row_counts.append(len(requests))
        return self._model.draft(requests)

    def commit(self, kept: Sequence[Any]) -> None:
        self.num_commits += 1
        if self.num_commits - 1 in self._failing:
            raise RuntimeError(FULL)
        self._model.commit(kept)


@pytest.fixture
def run(engine: StarsEngine) -> Iterator[Callable[..., list[StarsResult]]]:
    def run(model: object = engine.model, **options: Any) -> list[StarsResult]:
        config = engine.config.replace(
            sampling=SAMPLING, align=ALIGN, engine=EngineParams(**options)
        )
        with StarsEngine(config, model=model, reward=engine.reward) as mine:  # type: ignore[arg-type]
            return mine.generate(PROMPTS, return_exceptions=True)

    yield run
    engine.model.limit_cache(None)
    engine.reward.limit_cache(None)  # type: ignore[attr-defined]


@pytest.fixture
def wanted(run: Callable[..., list[StarsResult]]) -> list[dict[str, object]]:
    return [account(result) for result in run()]


def test_fewer_rows_at_a_time(
    run: Callable[..., list[StarsResult]],
    wanted: list[dict[str, object]],
    engine: StarsEngine,
    caplog: pytest.LogCaptureFixture,
) -> None:
    scarce = Scarce(engine.model, num_rows=6)
    assert [account(result) for result in run(scarce)] == wanted
    assert max(scarce.row_counts) <= 6
    assert "memory ended: from now on 5 candidates at once" in caplog.text
    # 20, 10, 5: said once each, and not tried again.
    assert caplog.text.count("candidates at once") == 2


@pytest.mark.slow
@pytest.mark.parametrize("num_prefixes", [1, 2, 4])
def test_requests_wait_for_memory(
    num_prefixes: int,
    run: Callable[..., list[StarsResult]],
    wanted: list[dict[str, object]],
    engine: StarsEngine,
    caplog: pytest.LogCaptureFixture,
) -> None:
    scarce = Scarce(engine.model, num_prefixes=num_prefixes)
    assert [account(result) for result in run(scarce)] == wanted
    assert scarce.most_live == num_prefixes
    assert scarce.num_prefills == len(PROMPTS)  # nobody is read twice
    assert "memory ended while 5 prompts were read" in caplog.text


@pytest.mark.parametrize("failing", [(0,), (2, 3, 7), range(0, 30, 2)], ids=str)
def test_what_was_accepted_is_read_again_when_there_is_memory(
    failing: Sequence[int],
    run: Callable[..., list[StarsResult]],
    wanted: list[dict[str, object]],
    engine: StarsEngine,
) -> None:
    scarce = Scarce(engine.model, failing=failing)
    assert [account(result) for result in run(scarce)] == wanted
    assert scarce.num_prefills > len(PROMPTS)


@pytest.mark.slow
def test_one_row_too_many_makes_the_others_wait(
    run: Callable[..., list[StarsResult]],
    wanted: list[dict[str, object]],
    engine: StarsEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not even one candidate has room beside three prefixes."""
    scarce = Scarce(engine.model)
    draft = scarce.draft

    def tight(requests: Sequence[Any]) -> Any:
        gc.collect()
        if len(scarce._live) >= 3:
            raise MemoryError
        return draft(requests)

    monkeypatch.setattr(scarce, "draft", tight)
    assert [account(result) for result in run(scarce)] == wanted
    assert scarce.num_prefills > len(PROMPTS)


def test_a_request_too_large_for_the_machine_fails_alone(
    run: Callable[..., list[StarsResult]],
    wanted: list[dict[str, object]],
    engine: StarsEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    long = max(len(engine.model.codec.encode_prompt(prompt)) for prompt in PROMPTS)
    scarce = Scarce(engine.model)
    prefill = scarce.prefill

    def tight(prompts: Sequence[Sequence[int]]) -> list[Any]:
        if any(len(prompt) == long for prompt in prompts):
            raise RuntimeError(FULL)
        return prefill(prompts)

    monkeypatch.setattr(scarce, "prefill", tight)
    results = run(scarce)
    assert isinstance(results[1], GenerationError)
    assert "memory ended" in str(results[1])
    assert f"a prompt of {long} tokens" in str(results[1])
    others = [0, 2, 3, 4]
    assert [account(results[index]) for index in others] == [wanted[index] for index in others]


@pytest.mark.slow
def test_giving_one_up_that_waits_fails_no_other_that_waits(engine: StarsEngine) -> None:
    scarce = Scarce(engine.model, num_prefixes=1)
    config = engine.config.replace(sampling=SAMPLING.replace(max_tokens=60), align=ALIGN)
    with StarsEngine(config, model=scarce, reward=engine.reward) as mine:  # type: ignore[arg-type]
        calls = [mine.submit(prompt) for prompt in PROMPTS[:3]]
        wait_until(lambda: mine.stats().num_active == 3)
        calls[1].cancel()
        assert calls[0].result(timeout=60)[0].finish_reason in ("length", "stop")
        assert calls[2].result(timeout=60)[0].finish_reason in ("length", "stop")


def test_a_single_candidate_is_tried_again_in_the_room_that_is_made(engine: StarsEngine) -> None:
    class Full(Scarce):
        num_dropped = 0

        def drop_unused(self) -> None:
            self.num_dropped += 1

        def draft(self, requests: Sequence[Any]) -> Any:
            if not self.num_dropped:
                raise MemoryError
            return super().draft(requests)

    full = Full(engine.model)
    config = engine.config.replace(sampling=SAMPLING, align=ALIGN.replace(num_candidates=1))
    with StarsEngine(config, model=full, reward=engine.reward) as mine:  # type: ignore[arg-type]
        assert mine.generate(PROMPTS[0])[0].finish_reason in ("length", "stop")
    assert full.num_dropped == 1


def test_one_that_does_not_fit_holds_nobody_up_for_longer_than_it_waits() -> None:
    """What a large prompt has shown to be too many is not so for the small ones behind it."""
    room, read = 10, []
    rollouts = [make_rollout(prompt_ids=(1,) * size) for size in (3, 3, 9, 3, 3, 3)]

    class Model(TabularModel):
        def prefill(self, prompts: Sequence[Sequence[int]]) -> list[Any]:
            inside = sum(len(r.prompt_ids) for r in rollouts if r.slot is not None)
            if inside + sum(map(len, prompts)) > room:
                raise MemoryError
            read.append(len(prompts[0]))
            return super().prefill(prompts)

    places = Places(Model(("a",), lambda _: (1.0,)), lambda: None)
    assert places.enter(rollouts) == []
    assert places.call_in(0, ()).rollouts == rollouts[:2]
    assert places.call_in(2, ()).rollouts == []  # the large one, in vain; not tried again
    for rollout in rollouts[:2]:
        rollout.slot = None
    assert places.call_in(0, ()).rollouts == [rollouts[2]]
    rollouts[2].slot = None
    assert places.call_in(0, ()).rollouts == rollouts[3:]
    assert read == [3, 3, 9, 3, 3, 3]


def test_nobody_passes_a_large_request_for_ever(engine: StarsEngine) -> None:
    """A budget that it fills by itself; small ones keep coming."""
    small, large = SAMPLING.replace(max_tokens=24), SAMPLING.replace(max_tokens=100)
    params = EngineParams(max_prefix_tokens=120)
    config = engine.config.replace(sampling=small, align=ALIGN, engine=params)
    with StarsEngine(config, model=engine.model, reward=engine.reward) as mine:
        calls = [mine.submit(prompt) for prompt in PROMPTS]
        waiting = mine.submit("A", sampling=large)
        for _ in range(200):
            if waiting.done():
                break
            calls = [call for call in calls if not call.done()]
            calls += [mine.submit("A") for _ in range(5 - len(calls))]
            wait(calls, return_when=FIRST_COMPLETED)
        assert waiting.done()


@pytest.mark.slow
def test_who_waits_for_a_slow_reward_keeps_its_prefix(engine: StarsEngine) -> None:
    def slow(prompt: str, completion: str) -> float:
        time.sleep(0.002)
        return float(len(completion) % 3)

    scarce = Scarce(engine.model, num_prefixes=2)
    config = StarsConfig(model="stars:embedded-lm", sampling=SAMPLING, align=ALIGN, reward=slow)
    with StarsEngine(config, model=scarce) as mine:  # type: ignore[arg-type]
        mine.generate(PROMPTS)
    assert scarce.num_prefills == len(PROMPTS)


def test_what_is_read_again_is_bounded_as_before(engine: StarsEngine) -> None:
    align = ALIGN.replace(max_drafted_tokens=16)
    drafted = []
    for failing in ((), (1,)):
        scarce = Scarce(engine.model, failing=failing)
        config = engine.config.replace(sampling=SAMPLING, align=align)
        with StarsEngine(config, model=scarce, reward=engine.reward) as mine:  # type: ignore[arg-type]
            [result] = mine.vanilla(PROMPTS[0])
        drafted.append((result.text, result.usage.num_drafted_tokens))
    assert drafted[0] == drafted[1]


@pytest.mark.slow
@pytest.mark.parametrize("scarce", ["prefixes", "rows", "tokens"])
def test_pilots_that_wait_for_each_other_find_what_they_would(
    scarce: str, engine: StarsEngine
) -> None:
    def fitted(model: object, **options: int) -> list[float]:
        config = engine.config.replace(engine=EngineParams(**options))
        with StarsEngine(config, model=model, reward=engine.reward) as mine:  # type: ignore[arg-type]
            found = calibrate(mine, OPENINGS, target_acceptance=0.4, seed=4, **QUICK)
        return [value for stage in found.stages for value in (stage.intercept, stage.offset)]

    wanted = fitted(engine.model)
    if scarce == "prefixes":
        found = fitted(Scarce(engine.model, num_prefixes=4))
    elif scarce == "rows":
        found = fitted(Scarce(engine.model, num_rows=4))
    else:
        found = fitted(engine.model, max_prefix_tokens=200)
    assert found == pytest.approx(wanted, abs=1e-4)


def test_waiting_for_memory_ends_at_the_deadline(engine: StarsEngine) -> None:
    scarce = Scarce(engine.model, num_prefixes=1)
    align = ALIGN.replace(deadline_s=0.0001)
    config = engine.config.replace(sampling=SAMPLING, align=align)
    with StarsEngine(config, model=scarce, reward=engine.reward) as mine:  # type: ignore[arg-type]
        results = mine.generate(PROMPTS)
        assert {result.finish_reason for result in results} == {"deadline"}
        assert mine.stats().num_active == 0


def test_a_reward_model_reads_fewer_texts_at_a_time(
    run: Callable[..., list[StarsResult]],
    wanted: list[dict[str, object]],
    engine: StarsEngine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    reader = engine.reward._incremental  # type: ignore[attr-defined]
    read = reader.read

    def tight(rows: Sequence[Any]) -> Any:
        if len(rows) > 3:
            raise RuntimeError(FULL)
        return read(rows)

    monkeypatch.setattr(reader, "read", tight)
    assert [account(result) for result in run()] == wanted
    assert "memory ended: from now on 3 texts at once" in caplog.text


# --- budgets ---


@pytest.mark.parametrize("num_at_once", [1, 2])
def test_requests_beyond_the_budget_of_tokens_wait(
    num_at_once: int,
    run: Callable[..., list[StarsResult]],
    wanted: list[dict[str, object]],
    engine: StarsEngine,
) -> None:
    longest = 24 + max(len(engine.model.codec.encode_prompt(prompt)) for prompt in PROMPTS)
    scarce = Scarce(engine.model)
    found = run(scarce, max_prefix_tokens=num_at_once * longest)
    assert [account(result) for result in found] == wanted
    assert scarce.most_live == num_at_once


def test_requests_beyond_the_budget_of_bytes_wait(
    run: Callable[..., list[StarsResult]], wanted: list[dict[str, object]], engine: StarsEngine
) -> None:
    engine.model.drop_unused()
    engine.reward.drop_unused()  # type: ignore[attr-defined]
    pool = pool_of(engine.model)
    limit = 3 * 64 * pool.bytes_per_token
    scarce = Scarce(engine.model)
    seen = []
    commit = scarce.commit

    def watched(kept: Sequence[Any]) -> None:
        commit(kept)
        seen.append(pool.num_bytes)

    scarce.commit = watched  # type: ignore[method-assign]
    assert [account(result) for result in run(scarce, max_cache_bytes=limit)] == wanted
    assert 1 < scarce.most_live < len(PROMPTS)
    assert max(seen) <= limit


def test_a_request_beyond_the_budget_by_itself_is_refused(
    run: Callable[..., list[StarsResult]], wanted: list[dict[str, object]]
) -> None:
    results = run(max_prefix_tokens=30)
    [refused] = [result for result in results if isinstance(result, Exception)]
    assert results.index(refused) == 1
    assert isinstance(refused, ContextOverflowError)
    assert "keeps 30 tokens in all" in str(refused)
    assert "Cure: shorten the prompt, lower max_tokens, or raise EngineParams(max_pref" in str(
        refused
    )


@pytest.mark.parametrize("name", ["max_prefix_tokens", "max_cache_bytes"])
def test_a_budget_of_nothing_is_an_error(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name}.*1"):
        StarsConfig(engine={name: 0})


# --- what says that memory has ended ---


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB"), True),
        (RuntimeError(FULL), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
    ids=str,
)
def test_out_of_memory_is_known_on_every_device(error: Exception, answer: bool) -> None:
    assert is_out_of_memory(error) is answer


def test_smaller_batches_until_they_fit(caplog: pytest.LogCaptureFixture) -> None:
    tried: list[int] = []

    def run(items: Sequence[int]) -> list[int]:
        tried.append(len(items))
        if len(items) > 3:
            raise MemoryError
        return [-item for item in items]

    rooms: list[int] = []
    with caplog.at_level(logging.WARNING):
        found = in_smaller_batches(run, range(10), what="things", make_room=rooms.append)
    assert found == [-item for item in range(10)]
    assert tried == [10, 5, 3, 3, 3, 1]
    assert rooms == [5, 3]
    assert in_smaller_batches(run, [], what="things", make_room=rooms.append) == []


def test_other_errors_and_single_items_are_not_tried_again() -> None:
    def run(items: Sequence[int]) -> list[int]:
        raise RuntimeError(FULL if len(items) == 1 else "another thing")

    with pytest.raises(RuntimeError, match="another thing"):
        in_smaller_batches(run, [1, 2], what="things", make_room=lambda _: None)
    with pytest.raises(RuntimeError, match="not enough memory"):
        in_smaller_batches(run, [1], what="things", make_room=lambda _: None)
