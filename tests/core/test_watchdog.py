"""Deadlines and closing while a model or a reward hangs on the engine's thread."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from stars_engine import (
    AlignParams,
    Chat,
    EngineClosedError,
    NoSchedule,
    SamplingParams,
    StarsConfig,
    StarsEngine,
)
from stars_engine.backends.base import DraftRequest
from stars_engine.runtime import watchdog
from stars_engine.types import RewardInput
from tests.support.engines import idle, wait_until

ALIGN = AlignParams(schedule=NoSchedule(), segment_len=4, num_candidates=1)
HURRIED = ALIGN.replace(deadline_s=1.5)  # several steps, on a busy machine as well
SAMPLING = SamplingParams(seed=3, max_tokens=64)


class Hanging:
    """A language model, or a reward, that hangs from its k-th call until it is released."""

    def __init__(self, wrapped: Any, num_calls: int) -> None:
        self._wrapped, self._num_calls = wrapped, num_calls
        self.hangs, self.release = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    def draft(self, requests: Sequence[DraftRequest]) -> Any:
        self._count()
        return self._wrapped.draft(requests)

    def score(self, inputs: Sequence[RewardInput]) -> Any:
        self._count()
        return self._wrapped.score(inputs)

    def _count(self) -> None:
        self._num_calls -= 1
        if self._num_calls < 0:
            self.hangs.set()
            assert self.release.wait(120)


@pytest.fixture(params=["model", "reward"])
def hanging(
    request: pytest.FixtureRequest, engine: StarsEngine
) -> Iterator[tuple[StarsEngine, Hanging]]:
    part = Hanging(getattr(engine, request.param), num_calls=1)
    parts = {"model": engine.model, "reward": engine.reward, request.param: part}
    with StarsEngine(StarsConfig(align=ALIGN), **parts) as mine:
        try:
            yield mine, part
        finally:
            part.release.set()


@pytest.mark.slow
def test_a_deadline_is_answered_while_the_engine_hangs(
    hanging: tuple[StarsEngine, Hanging], caplog: pytest.LogCaptureFixture
) -> None:
    mine, part = hanging
    with caplog.at_level(logging.WARNING):
        [result] = mine.generate("The film", sampling=SAMPLING, align=HURRIED)
    assert part.hangs.is_set()
    assert not part.release.is_set()
    assert result.finish_reason == "deadline"
    assert result.text
    assert result.text == "".join(segment.text for segment in result.segments)
    assert "thread 'stars-engine' is busy in" in caplog.text
    assert "_count" in caplog.text
    waiting = mine.generate(["b", "c"], sampling=SAMPLING, align=HURRIED)  # the thread still hangs
    assert [each.finish_reason for each in waiting] == ["deadline"] * 2
    assert [each.prompt_index for each in waiting] == [0, 1]
    part.release.set()
    assert mine.generate("d", sampling=SAMPLING)[0].text
    wait_until(lambda: idle(mine))
    assert mine.stats().num_finished == 4


@pytest.mark.slow
def test_a_stream_ends_at_its_deadline(hanging: tuple[StarsEngine, Hanging]) -> None:
    mine, part = hanging
    events = list(mine.stream("The film", sampling=SAMPLING, align=HURRIED))
    assert not part.release.is_set()
    assert events[-1].result is not None
    assert events[-1].result.finish_reason == "deadline"
    assert "".join(event.text for event in events) == events[-1].result.text
    part.release.set()


def test_a_conversation_gets_its_message(hanging: tuple[StarsEngine, Hanging]) -> None:
    mine, part = hanging
    chat = Chat([{"role": "user", "content": "Hello"}])
    align = ALIGN.replace(deadline_s=0.1)  # less than one step, or while it hangs
    [result] = mine.generate(chat, sampling=SAMPLING, align=align)
    assert not part.release.is_set()
    assert result.message is not None
    part.release.set()


def test_a_conversation_that_is_not_read_gets_its_message(
    hanging: tuple[StarsEngine, Hanging],
) -> None:
    mine, part = hanging
    first = mine.submit("The film", sampling=SAMPLING)
    assert part.hangs.wait(60)
    chat = Chat([{"role": "user", "content": "Hello"}])
    align = ALIGN.replace(deadline_s=0.1)
    [result] = mine.generate(chat, sampling=SAMPLING, align=align)
    *_, last = mine.stream(chat, sampling=SAMPLING, align=align)
    assert last.result is not None
    for unread in (result, last.result):
        assert unread.finish_reason == "deadline"
        assert unread.message is not None
        assert unread.message.content == ""
    part.release.set()
    first.result(timeout=60)


def test_all_answers_of_a_large_call_are_given_at_its_deadline(
    hanging: tuple[StarsEngine, Hanging], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "READING_S", 0.02)  # much less than it takes to read them all
    mine, part = hanging
    first = mine.submit("The film", sampling=SAMPLING)
    assert part.hangs.wait(60)
    align = ALIGN.replace(deadline_s=0.1)
    results = mine.generate(["a", "b"], sampling=SAMPLING.replace(n=800), align=align)
    assert [each.sample_index for each in results] == [*range(800)] * 2
    assert {each.finish_reason for each in results} == {"deadline"}
    part.release.set()
    first.result(timeout=60)
    wait_until(lambda: mine.stats().num_finished == 1601)


def test_closing_returns_while_the_engine_hangs(
    hanging: tuple[StarsEngine, Hanging], caplog: pytest.LogCaptureFixture
) -> None:
    mine, part = hanging
    future = mine.submit("The film", sampling=SAMPLING)
    assert part.hangs.wait(60)
    with caplog.at_level(logging.WARNING):
        mine.close(timeout_s=0.05)
    assert not part.release.is_set()
    assert "thread 'stars-engine' is busy in" in caplog.text
    with pytest.raises(EngineClosedError):
        future.result(timeout=60)


def test_calls_that_are_due_together_are_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """None waits for the reading of another, which may hang."""
    order: list[str] = []
    release = threading.Event()

    def hang(_: object) -> list[Any]:
        release.wait(60)
        return []

    def call() -> Any:
        return SimpleNamespace(
            expires_at_s=expires_at_s,
            num_answers=1,
            future=SimpleNamespace(when_done=lambda _: None),
            fail=lambda _: order.append("failed"),
            complete_at_deadline=lambda _: None,
            elapsed_s=lambda: 0.0,
        )

    monkeypatch.setattr(watchdog, "events_at_deadline", hang)
    monkeypatch.setattr(watchdog, "missed_deadline_error", lambda _: TimeoutError())
    expires_at_s = time.monotonic() + 0.1
    mine = watchdog.Watchdog(lambda: None, lambda _: order.append("missed"))
    for _ in range(8):
        mine.watch(call())
    wait_until(lambda: len(order) == 16)
    release.set()
    assert order == ["missed"] * 8 + ["failed"] * 8
