"""Out of memory: smaller steps, later requests, the same text; budgets that prevent it."""

from __future__ import annotations

import gc
import logging
import time
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
    NoSchedule,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    StarsResult,
    calibrate,
)
from stars_engine.backends.base import Draft, DraftRequest, PrefixHandle
from stars_engine.core.offline import stars
from stars_engine.errors import ContextOverflowError
from stars_engine.out_of_memory import in_smaller_batches, is_out_of_memory
from stars_engine.testing import TableReward, TabularModel
from tests.support.accounts import account
from tests.support.backends import pool_of
from tests.support.calibration import OPENINGS, QUICK
from tests.support.engines import wait_until
from tests.support.limited_memory import FULL, LimitedMemoryModel
from tests.support.rollouts import make_rollout

PROMPTS = ["The film", "I went to see it on a rainy day and", "Nobody", "A", "One more of them"]
SAMPLING = SamplingParams(seed=11, max_tokens=24)
ALIGN = AlignParams(schedule=ConstantSchedule(value=1.0), segment_len=8, num_candidates=4)


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


@pytest.mark.slow
def test_fewer_rows_at_a_time(
    run: Callable[..., list[StarsResult]],
    wanted: list[dict[str, object]],
    engine: StarsEngine,
    caplog: pytest.LogCaptureFixture,
) -> None:
    limited = LimitedMemoryModel(engine.model, num_rows=6)
    assert [account(result) for result in run(limited)] == wanted
    assert max(limited.row_counts) <= 6
    assert "Out of memory; reducing the batch to 5 candidates." in caplog.text
    # 20, 10, 5: said once each, and not tried again.
    assert caplog.text.count("reducing the batch") == 2


@pytest.mark.slow
@pytest.mark.parametrize("num_prefixes", [1, 2, 4])
def test_requests_wait_for_memory(
    num_prefixes: int,
    run: Callable[..., list[StarsResult]],
    wanted: list[dict[str, object]],
    engine: StarsEngine,
    caplog: pytest.LogCaptureFixture,
) -> None:
    limited = LimitedMemoryModel(engine.model, num_prefixes=num_prefixes)
    assert [account(result) for result in run(limited)] == wanted
    assert limited.most_live == num_prefixes
    assert limited.num_computed == len(PROMPTS)  # no prefix is computed twice
    assert max(limited.row_counts) == 4 * num_prefixes  # candidates are as many as before
    assert "Out of memory; preempting" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    "failing", [(0,), (2, 3, 7), range(0, 30, 2), range(3, 9), range(1, 8)], ids=str
)
def test_accepted_segments_are_recomputed_when_memory_is_free(
    failing: Sequence[int],
    run: Callable[..., list[StarsResult]],
    wanted: list[dict[str, object]],
    engine: StarsEngine,
) -> None:
    limited = LimitedMemoryModel(engine.model, failing=failing)
    assert [account(result) for result in run(limited)] == wanted
    long_enough = isinstance(failing, range) and failing.step == 1  # for a single candidate to fail
    assert limited.num_computed > len(PROMPTS) or not long_enough


@pytest.mark.slow
def test_one_row_too_many_makes_other_requests_wait(
    run: Callable[..., list[StarsResult]],
    wanted: list[dict[str, object]],
    engine: StarsEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With three prefixes not even one candidate fits."""
    limited = LimitedMemoryModel(engine.model)
    draft = limited.draft

    def tight(requests: Sequence[Any]) -> Any:
        if len(limited.live) >= 3:
            raise MemoryError
        return draft(requests)

    monkeypatch.setattr(limited, "draft", tight)
    assert [account(result) for result in run(limited)] == wanted
    assert limited.num_computed > len(PROMPTS)


@pytest.mark.slow
def test_a_request_too_large_for_the_machine_fails_alone(
    run: Callable[..., list[StarsResult]],
    wanted: list[dict[str, object]],
    engine: StarsEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    long = max(len(engine.model.codec.encode_prompt(prompt)) for prompt in PROMPTS)
    limited = LimitedMemoryModel(engine.model)
    draft = limited.draft

    def tight(requests: Sequence[DraftRequest]) -> Any:
        if any(request.num_prompt_tokens == long for request in requests):
            raise RuntimeError(FULL)
        return draft(requests)

    monkeypatch.setattr(limited, "draft", tight)
    results = run(limited)
    assert isinstance(results[1], GenerationError)
    assert "out of memory with a single running request" in str(results[1])
    assert f"prompt {long} tokens" in str(results[1])
    others = [0, 2, 3, 4]
    assert [account(results[index]) for index in others] == [wanted[index] for index in others]


@pytest.mark.slow
def test_cancelling_a_waiting_request_fails_no_other(engine: StarsEngine) -> None:
    limited = LimitedMemoryModel(engine.model, num_prefixes=1)
    config = engine.config.replace(sampling=SAMPLING.replace(max_tokens=60), align=ALIGN)
    with StarsEngine(config, model=limited, reward=engine.reward) as mine:  # type: ignore[arg-type]
        calls = [mine.submit(prompt) for prompt in PROMPTS[:3]]
        wait_until(lambda: mine.stats().num_active == 3)
        calls[1].cancel()
        assert calls[0].result(timeout=60)[0].finish_reason in ("length", "stop")
        assert calls[2].result(timeout=60)[0].finish_reason in ("length", "stop")


def test_a_single_candidate_is_retried_after_memory_is_freed(engine: StarsEngine) -> None:
    class Full(LimitedMemoryModel):
        num_dropped = 0

        def free_unused(self) -> None:
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


def test_a_request_that_does_not_fit_delays_others_only_while_it_waits() -> None:
    """The limit that a large prompt caused does not apply to the small ones after it."""
    room, computed = 10, []
    held: dict[PrefixHandle, int] = {}

    class Model(TabularModel):
        def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]:
            sizes = {request.handle: request.num_prompt_tokens for request in requests}
            live = {handle: size for handle, size in held.items() if handle.cached is not None}
            if sum((live | sizes).values()) > room:
                raise MemoryError
            for handle, size in sizes.items():
                if handle.cached is None:
                    computed.append(size)
                    handle.cached, held[handle] = "computed", size
            return super().draft(requests)

    rollouts = [
        make_rollout(
            prompt_ids=(1,) * size,
            align=AlignParams(schedule=NoSchedule(), segment_len=2, num_candidates=1),
            sampling=SamplingParams(max_tokens=4),
        )
        for size in (3, 3, 9, 3, 3, 3)
    ]
    for _ in stars(rollouts, Model(("a",), lambda _: (1.0,)), TableReward({})):
        pass
    assert {rollout.text for rollout in rollouts} == {"aaaa"}
    # The large one is tried in vain beside two small ones, then alone; the others go together.
    assert computed == [3, 3, 9, 3, 3, 3]


@pytest.mark.slow
def test_larger_batches_are_tried_again_later() -> None:
    """Another program took the memory at the beginning, and ended."""
    row_counts: list[int] = []

    class Model(TabularModel):
        def draft(self, requests: Sequence[DraftRequest]) -> list[Draft]:
            row_counts.append(len(requests))
            if len(requests) > (4 if len(row_counts) < 300 else 16):
                raise MemoryError
            return super().draft(requests)

    rollouts = [
        make_rollout(
            align=AlignParams(schedule=NoSchedule(), segment_len=1, num_candidates=1),
            sampling=SamplingParams(max_tokens=400),
        )
        for _ in range(16)
    ]
    for _ in stars(rollouts, Model(("a",), lambda _: (1.0,)), TableReward({})):
        pass
    assert {len(rollout.token_ids) for rollout in rollouts} == {400}
    assert row_counts[:4] == [16, 8, 4, 4]
    assert row_counts[:300].count(8) == 2  # at the beginning, and after 64 steps of four batches
    assert row_counts[-1] == 16


@pytest.mark.slow
def test_a_large_request_is_not_starved(engine: StarsEngine) -> None:
    """It fills the budget alone, while small requests keep coming."""
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
def test_a_request_that_waits_for_a_slow_reward_keeps_its_prefix(engine: StarsEngine) -> None:
    def slow(prompt: str, completion: str) -> float:
        time.sleep(0.002)
        return float(len(completion) % 3)

    limited = LimitedMemoryModel(engine.model, num_prefixes=2)
    config = StarsConfig(model="stars:embedded-lm", sampling=SAMPLING, align=ALIGN, reward=slow)
    with StarsEngine(config, model=limited) as mine:  # type: ignore[arg-type]
        mine.generate(PROMPTS)
    assert limited.num_computed == len(PROMPTS)


def test_recomputed_prefixes_stay_within_the_limits(engine: StarsEngine) -> None:
    align = ALIGN.replace(max_drafted_tokens=16)
    drafted = []
    for failing in ((), (1,)):
        limited = LimitedMemoryModel(engine.model, failing=failing)
        config = engine.config.replace(sampling=SAMPLING, align=align)
        with StarsEngine(config, model=limited, reward=engine.reward) as mine:  # type: ignore[arg-type]
            [result] = mine.vanilla(PROMPTS[0])
        drafted.append((result.text, result.usage.num_drafted_tokens))
    assert drafted[0] == drafted[1]


@pytest.mark.slow
@pytest.mark.parametrize("limited", ["prefixes", "rows", "tokens"])
def test_concurrent_calibrations_without_memory_find_the_same_thresholds(
    limited: str, engine: StarsEngine
) -> None:
    def fitted(model: object, **options: int) -> list[float]:
        config = engine.config.replace(engine=EngineParams(**options))
        with StarsEngine(config, model=model, reward=engine.reward) as mine:  # type: ignore[arg-type]
            found = calibrate(mine, OPENINGS, target_acceptance=0.4, seed=4, **QUICK)
        return [value for stage in found.stages for value in (stage.intercept, stage.offset)]

    wanted = fitted(engine.model)
    if limited == "prefixes":
        found = fitted(LimitedMemoryModel(engine.model, num_prefixes=4))
    elif limited == "rows":
        found = fitted(LimitedMemoryModel(engine.model, num_rows=4))
    else:
        found = fitted(engine.model, max_prefix_tokens=200)
    assert found == pytest.approx(wanted, abs=1e-4)


def test_waiting_for_memory_ends_at_the_deadline(engine: StarsEngine) -> None:
    limited = LimitedMemoryModel(engine.model, num_prefixes=1)
    align = ALIGN.replace(deadline_s=0.0001)
    config = engine.config.replace(sampling=SAMPLING, align=align)
    with StarsEngine(config, model=limited, reward=engine.reward) as mine:  # type: ignore[arg-type]
        results = mine.generate(PROMPTS)
        assert {result.finish_reason for result in results} == {"deadline"}
        assert mine.stats().num_active == 0


@pytest.mark.slow
def test_a_reward_model_reads_fewer_texts_at_a_time(
    run: Callable[..., list[StarsResult]],
    wanted: list[dict[str, object]],
    engine: StarsEngine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    reader = engine.reward._incremental  # type: ignore[attr-defined]
    run_rows = reader.run

    def tight(rows: Sequence[Any]) -> Any:
        if len(rows) > 3:
            raise RuntimeError(FULL)
        return run_rows(rows)

    monkeypatch.setattr(reader, "run", tight)
    assert [account(result) for result in run()] == wanted
    assert "Out of memory; reducing the batch to 3 texts." in caplog.text


# --- budgets ---


@pytest.mark.slow
@pytest.mark.parametrize("num_at_once", [1, 2])
def test_requests_beyond_the_budget_of_tokens_wait(
    num_at_once: int,
    run: Callable[..., list[StarsResult]],
    wanted: list[dict[str, object]],
    engine: StarsEngine,
) -> None:
    longest = 24 + max(len(engine.model.codec.encode_prompt(prompt)) for prompt in PROMPTS)
    limited = LimitedMemoryModel(engine.model)
    found = run(limited, max_prefix_tokens=num_at_once * longest)
    assert [account(result) for result in found] == wanted
    assert limited.most_live == num_at_once


@pytest.mark.slow
def test_requests_beyond_the_budget_of_bytes_wait(
    run: Callable[..., list[StarsResult]], wanted: list[dict[str, object]], engine: StarsEngine
) -> None:
    gc.collect()  # engines of earlier tests may still pin prefixes
    engine.model.free_unused()
    engine.reward.free_unused()  # type: ignore[attr-defined]
    pool = pool_of(engine.model)
    limit = 3 * 64 * pool.bytes_per_token
    limited = LimitedMemoryModel(engine.model)
    seen = []
    draft = limited.draft

    def watched(requests: Sequence[DraftRequest]) -> Any:
        drafts = draft(requests)
        seen.append(pool.num_bytes)
        return drafts

    limited.draft = watched  # type: ignore[method-assign]
    assert [account(result) for result in run(limited, max_cache_bytes=limit)] == wanted
    assert 1 < limited.most_live < len(PROMPTS)
    assert max(seen) <= limit


@pytest.mark.slow
def test_a_request_larger_than_the_budget_is_refused(
    run: Callable[..., list[StarsResult]], wanted: list[dict[str, object]]
) -> None:
    results = run(max_prefix_tokens=30)
    [refused] = [result for result in results if isinstance(result, Exception)]
    assert results.index(refused) == 1
    assert isinstance(refused, ContextOverflowError)
    assert "budget is 30 tokens in all" in str(refused)
    assert "Hint: shorten the prompt, lower max_tokens, or raise EngineParams(max_pref" in str(
        refused
    )


@pytest.mark.parametrize("name", ["max_prefix_tokens", "max_cache_bytes"])
def test_a_zero_budget_is_an_error(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name}.*1"):
        StarsConfig(engine={name: 0})


# --- errors that mean out of memory ---


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
        found = in_smaller_batches(run, range(10), what="things", free_unused=rooms.append)
    assert found == [-item for item in range(10)]
    assert tried == [10, 5, 3, 3, 3, 1]
    assert rooms == [5, 3]
    assert in_smaller_batches(run, [], what="things", free_unused=rooms.append) == []


def test_other_errors_and_single_items_are_not_retried() -> None:
    def run(items: Sequence[int]) -> list[int]:
        raise RuntimeError(FULL if len(items) == 1 else "another thing")

    with pytest.raises(RuntimeError, match="another thing"):
        in_smaller_batches(run, [1, 2], what="things", free_unused=lambda _: None)
    with pytest.raises(RuntimeError, match="not enough memory"):
        in_smaller_batches(run, [1], what="things", free_unused=lambda _: None)
