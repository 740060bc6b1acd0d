"""Answers of a call start while its last prompts are still read."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from stars_engine import (
    AlignParams,
    ChoiceGrammar,
    ConfigError,
    EngineClosedError,
    NoSchedule,
    PromptError,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    StarsResult,
    TokenIds,
)
from stars_engine.grammars import Grammars
from stars_engine.runtime import prompt_reading
from stars_engine.runtime.active_answers import ActiveAnswers
from tests.support.engines import LONG, SHORT, idle, wait_until

PLAIN = AlignParams(schedule=NoSchedule(), num_candidates=1)
UNKNOWN = TokenIds([10**6])
PROMPTS = ["a", "b", "c", "d", "e", "f"]


class Reading:
    """Holds the reading of the prompts that have its settings."""

    def __init__(self, name: str) -> None:
        self.go_on = threading.Event()
        self.grammar = ChoiceGrammar(choices=[name, f"{name} too"])
        self.settings = SHORT.replace(grammar=self.grammar)

    def samplings(self, index: int, count: int = 6, others: SamplingParams = SHORT) -> Any:
        return [self.settings if i == index else others for i in range(count)]


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Reading]:
    monkeypatch.setattr(prompt_reading, "READ_FIRST", 2)
    reading, compile_ = Reading(request.node.name), Grammars._compile

    def slow(self: Grammars, grammar: Any) -> Any:
        if grammar == reading.grammar:
            assert reading.go_on.wait(60)
        return compile_(self, grammar)

    monkeypatch.setattr(Grammars, "_compile", slow)
    yield reading
    reading.go_on.set()


@pytest.fixture
def mine(engine: StarsEngine) -> Iterator[StarsEngine]:
    config = StarsConfig(align=PLAIN, sampling=SHORT)
    with StarsEngine(config, model=engine.model, reward=engine.reward) as own:
        yield own


def test_first_answers_arrive_before_the_last_prompts_are_read(
    mine: StarsEngine, held: Reading
) -> None:
    with mine.stream(PROMPTS, sampling=held.samplings(4)) as stream:
        first = {next(each.prompt_index for each in stream if each.result) for _ in range(4)}
        assert first == {0, 1, 2, 3}
        held.go_on.set()
        assert {each.prompt_index for each in stream if each.result} == {4, 5}
    assert idle(mine)


@pytest.mark.slow
def test_results_are_in_order_and_equal_to_those_alone(mine: StarsEngine, held: Reading) -> None:
    future = mine.submit(PROMPTS, sampling=held.samplings(2))
    wait_until(lambda: mine.stats().num_finished == 2)
    held.go_on.set()
    results = future.result()
    assert [each.prompt_index for each in results] == list(range(6))
    alone = [mine.generate(each)[0].text for each in PROMPTS]
    assert [each.text for i, each in enumerate(results) if i != 2] == alone[:2] + alone[3:]


def test_the_error_of_a_late_prompt_cancels_the_call(mine: StarsEngine, held: Reading) -> None:
    samplings = held.samplings(2, others=LONG)
    future = mine.submit([*PROMPTS[:3], UNKNOWN], sampling=samplings[:4])
    wait_until(lambda: mine.stats().num_active == 2)
    held.go_on.set()
    with pytest.raises(PromptError, match="outside the vocabulary"):
        future.result()
    wait_until(lambda: idle(mine))
    assert mine.stats().num_cancelled >= 1


def test_a_stream_raises_the_error_of_a_late_prompt(mine: StarsEngine, held: Reading) -> None:
    with mine.stream([*PROMPTS[:3], UNKNOWN], sampling=held.samplings(2, 4)) as stream:
        assert next(stream).prompt_index in {0, 1}
        held.go_on.set()
        with pytest.raises(PromptError, match="outside the vocabulary"):
            list(stream)
    wait_until(lambda: idle(mine))


def test_late_errors_are_returned_in_their_places(mine: StarsEngine, held: Reading) -> None:
    prompts = [*PROMPTS[:3], UNKNOWN, "e"]
    future = mine.submit(prompts, sampling=held.samplings(2, 5), return_exceptions=True)
    wait_until(lambda: mine.stats().num_finished == 2)
    held.go_on.set()
    results = future.result()
    assert isinstance(results.pop(3), PromptError)
    assert all(isinstance(each, StarsResult) for each in results)
    assert idle(mine)


def test_settings_of_all_prompts_are_checked_before_the_first_answer(
    mine: StarsEngine, held: Reading
) -> None:
    unknown = SHORT.replace(logit_bias={10**6: 1.0})
    too_many = SHORT.replace(stop=tuple(map(str, range(2000))))
    for bad, field in ((unknown, "logit_bias"), (too_many, "stop")):
        with pytest.raises(ConfigError, match=field):
            mine.generate(PROMPTS, sampling=[*held.samplings(2)[:5], bad])
    assert mine.stats().num_steps == 0
    assert idle(mine)


@pytest.mark.parametrize("cancel", ["future", "stream"])
def test_cancelling_ends_answers_of_all_prompts(
    mine: StarsEngine, held: Reading, cancel: str
) -> None:
    samplings = held.samplings(3, others=LONG)
    if cancel == "future":
        future = mine.submit(PROMPTS, sampling=samplings)
        wait_until(lambda: mine.stats().num_active > 0)
        assert future.cancel()
    else:
        with mine.stream(PROMPTS, sampling=samplings) as stream:
            next(stream)
            stream.cancel()
            results = [each.result for each in stream if each.result]
        assert sorted(each.prompt_index for each in results) == list(range(6))
    wait_until(lambda: idle(mine))
    wait_until(lambda: mine.stats().num_finished + mine.stats().num_cancelled == 6)


def test_deadlines_end_prompts_that_are_not_read(mine: StarsEngine, held: Reading) -> None:
    aligns = [PLAIN.replace(deadline_s=0.2) if i in {4, 5} else PLAIN for i in range(6)]
    samplings = held.samplings(2)
    with mine.stream(PROMPTS, sampling=samplings, align=aligns) as stream:
        first = [next(each.result for each in stream if each.result) for _ in range(4)]
        reasons = {each.prompt_index: each.finish_reason for each in first}
        assert reasons == {0: "length", 1: "length", 4: "deadline", 5: "deadline"}
        held.go_on.set()
        assert {each.prompt_index for each in stream if each.result} == {2, 3}
    assert idle(mine)


def test_closing_fails_prompts_that_are_not_read(mine: StarsEngine, held: Reading) -> None:
    future = mine.submit(PROMPTS, sampling=held.samplings(2), return_exceptions=True)
    wait_until(lambda: mine.stats().num_finished == 2)
    mine.close()
    results = future.result()
    assert all(isinstance(each, StarsResult) for each in results[:2])
    assert all(isinstance(each, EngineClosedError) for each in results[2:])


def test_best_of_n_starts_before_all_prompts_are_read(mine: StarsEngine, held: Reading) -> None:
    pool: list[StarsResult] = []
    thread = threading.Thread(
        target=lambda: pool.extend(mine.best_of_n(PROMPTS, 3, sampling=held.samplings(2)))
    )
    thread.start()
    wait_until(lambda: mine.stats().num_finished == 2)
    held.go_on.set()
    thread.join()
    assert [each.prompt_index for each in pool] == list(range(6))
    assert idle(mine)


def test_a_caller_without_an_unread_prompt_is_not_delayed(mine: StarsEngine, held: Reading) -> None:
    future = mine.submit(PROMPTS, sampling=held.samplings(2))
    assert mine.generate("alone")[0].finish_reason == "length"
    held.go_on.set()
    assert len(future.result()) == 6


def test_many_overdue_answers_are_ended_once_each(engine: StarsEngine) -> None:
    hurried = PLAIN.replace(deadline_s=0.3)
    config = StarsConfig(align=hurried, sampling=LONG.replace(n=2))
    with StarsEngine(config, model=engine.model, reward=engine.reward) as mine:
        results = mine.generate([f"Film {i}" for i in range(500)])
        assert {each.finish_reason for each in results} == {"deadline"}
        assert mine.generate("a", deadline_s=60.0, max_tokens=4)[0].finish_reason == "length"
        wait_until(lambda: idle(mine))
        assert mine.stats().num_finished == 1002


def test_checks_of_a_deadline_that_overlap_end_each_answer_once(mine: StarsEngine) -> None:
    hurried = PLAIN.replace(deadline_s=0.1)
    group = mine._new_group([*PROMPTS, *PROMPTS], SHORT, hurried, None)
    group.unread.note_deadlines()
    answers = ActiveAnswers(lambda _: None, lambda *_: None)
    checks = [answers.end_overdue(group, math.inf) for _ in range(3)]
    while checks:
        checks = [each for each in checks if next(each, "done") != "done"]
    assert [each.finish_reason for each in group.future.result(0)] == ["deadline"] * 12
    assert answers.totals.snapshot()["num_finished"] == 12
