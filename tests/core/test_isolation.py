"""What large requests may cost others: bounds, answers made late, and work in the background."""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import warnings
from collections import UserList
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stars_engine import (
    AlignParams,
    Alternative,
    Chat,
    ChoiceGrammar,
    ConfigError,
    ConstantSchedule,
    ContextOverflowError,
    EngineParams,
    GenerationError,
    NoSchedule,
    PromptError,
    RegexGrammar,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    StarsResult,
    StarsWarning,
)
from stars_engine.backends.transformers import TransformersBackend
from stars_engine.calibration import settings
from stars_engine.config import JsonGrammar, TransformersModel
from stars_engine.core.engine_core import EngineCore
from stars_engine.grammars import Grammars, states
from stars_engine.json_schema.compiling import json_rules
from stars_engine.json_schema.rules import Rules
from stars_engine.rewards.prompt_cutting import PromptCutter
from stars_engine.runtime.answers import CheckedPrompt
from stars_engine.runtime.limits import LONG_TEXT
from stars_engine.runtime.output_processor import OutputProcessor
from stars_engine.threads.background_threads import BackgroundThreads
from stars_engine.threads.give_way import give_way
from stars_engine.tokenization.added_tokens import MarkedEncoder
from stars_engine.tokenization.codec import Codec
from stars_engine.tokenization.stop_strings import StopStrings
from stars_engine.types import RewardInput, RewardPrompt
from tests.support.engines import NEVER, SHORT, idle, wait_until

PLAIN = AlignParams(schedule=NoSchedule(), num_candidates=1)


def engine_with(engine: StarsEngine, params: EngineParams, model: Any = None) -> StarsEngine:
    config = StarsConfig(align=PLAIN, engine=params, sampling=SHORT)
    return StarsEngine(config, model=model or engine.model, reward=engine.reward)


# --- bounds ---


@pytest.mark.parametrize(
    ("params", "sampling", "words"),
    [
        (EngineParams(max_n=4), {"n": 5}, "n: 5 is too large; allowed: at most 4"),
        (EngineParams(max_stop_strings=2), {"stop": ["a", "b", "c"]}, "stop: 3 is too large"),
        (EngineParams(max_stop_strings=2), {"stop": ["a" * 3000]}, "have 3000 characters"),
        (EngineParams(max_stop_strings=2), {"stop_token_ids": [5] * 3}, "stop_token_ids: 3 is too"),
        (EngineParams(), {"logit_bias": dict.fromkeys(range(524_289), 1.0)}, "524289 entries"),
        (
            EngineParams(max_grammar_chars=100),
            {"grammar": ChoiceGrammar(choices=["a" * 200])},
            "max_grammar_chars",
        ),
    ],
)
def test_settings_beyond_a_bound_are_refused(
    engine: StarsEngine, params: EngineParams, sampling: dict[str, Any], words: str
) -> None:
    with engine_with(engine, params) as mine:
        too_large = SHORT.replace(**sampling)
        with pytest.raises(ConfigError, match=words) as caught:
            mine.generate("a", sampling=too_large)
        assert "Hint:" in str(caught.value)
        good, *bad = mine.generate(["a", "b"], sampling=[SHORT, too_large], return_exceptions=True)
        assert isinstance(good, StarsResult)
        assert {type(outcome) for outcome in bad} == {ConfigError}


def test_refused_settings_are_not_compared_with_a_calibration(
    engine: StarsEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []
    settings_of = settings.dependencies

    def noted(config: StarsConfig, align: AlignParams, sampling: SamplingParams) -> dict[str, Any]:
        compared.append(len(sampling.stop))
        return settings_of(config, align, sampling)

    monkeypatch.setattr(settings, "dependencies", noted)
    too_large = SHORT.replace(stop=[f"stop {index}" for index in range(1025)])
    engine.generate(["a", "b"], sampling=[SHORT, too_large], return_exceptions=True)
    assert compared == [0]


def test_long_prompts_are_refused_before_they_are_read(engine: StarsEngine) -> None:
    with engine_with(engine, EngineParams(max_prompt_chars=100)) as mine:
        for prompt in ("a" * 200, Chat([{"role": "user", "content": "a" * 200}])):
            with pytest.raises(PromptError, match="max_prompt_chars"):
                mine.generate(prompt)
        with pytest.raises(PromptError, match="reward_prompt has about"):
            mine.generate("a", reward_prompt="b" * 200)
        outcomes = mine.generate(["a", "a" * 200], return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [StarsResult, PromptError]


def test_large_tools_and_alternatives_are_refused(engine: StarsEngine) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": ["b" * 300]}}}
    tools = [{"name": "f", "description": "d", "parameters": schema}]
    chat = Chat([{"role": "user", "content": "a"}], tools=tools)
    align = PLAIN.replace(alternatives=[Alternative(preface="a" * 900, share=0.5)])
    with engine_with(engine, EngineParams(max_grammar_chars=200, max_prompt_chars=800)) as mine:
        with pytest.raises(ConfigError, match=r"tools: their parameters have about .*Hint:"):
            mine.generate(chat)
        with pytest.raises(PromptError, match=r"the text of all alternatives has about .*Hint:"):
            mine.generate("a", align=align)
        assert mine.generate(chat.replace(constrain_tools=False))


def test_a_call_with_too_many_answers_is_refused(engine: StarsEngine) -> None:
    with engine_with(engine, EngineParams(max_answers=8, max_n=8)) as mine:
        with pytest.raises(ConfigError, match="12 answers is too large; allowed: at most 8"):
            mine.generate(["a"] * 3, sampling=SHORT.replace(n=4))
        with pytest.raises(ConfigError, match="max_n"):
            mine.best_of_n("a", 9)
        assert len(mine.generate(["a"] * 8)) == 8


def test_a_long_stop_string_is_allowed(engine: StarsEngine) -> None:
    stop = ["b" * 10_000]
    assert engine.generate("a", sampling=SHORT.replace(stop=stop), align=PLAIN)[0].text


# --- answers are made when they start ---


@pytest.mark.slow
def test_answers_are_made_when_they_start(
    engine: StarsEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    make = CheckedPrompt.rollout

    def counted(self: CheckedPrompt, number: int) -> Any:
        made.append(number)
        return make(self, number)

    monkeypatch.setattr(CheckedPrompt, "rollout", counted)
    params = EngineParams(max_active=4, max_n=10**6, max_answers=10**6)
    with engine_with(engine, params) as mine:
        large = mine.submit("a", sampling=SHORT.replace(n=1000), align=NEVER)
        assert mine.generate("b")[0].text
        assert large.cancel()
        wait_until(lambda: idle(mine))
        assert len(made) < 20
        assert mine.stats().num_cancelled == 1000
        assert mine.generate("b")[0].text


@pytest.mark.slow
def test_the_samples_of_best_of_n_are_made_when_they_start(engine: StarsEngine) -> None:
    with engine_with(engine, EngineParams(max_active=2)) as mine:
        [result] = mine.best_of_n("a", 9)
        assert len(result.segments[0].attempts) == 9
        hurried = StarsConfig(align=PLAIN.replace(deadline_s=1e-6)).align
        mine.config = mine.config.replace(align=hurried)
        [late] = mine.best_of_n("a", 9)
        assert late.finish_reason == "deadline"
        wait_until(lambda: idle(mine))


@pytest.mark.slow
def test_all_answers_of_a_large_call_arrive_in_order(engine: StarsEngine) -> None:
    with engine_with(engine, EngineParams(max_active=4, max_waiting=3)) as mine:
        prompts = [f"Film {index}" for index in range(7)]
        found = mine.generate(prompts, sampling=SHORT.replace(n=3))
        indices = [(result.prompt_index, result.sample_index) for result in found]
        assert indices == [(i, j) for i in range(7) for j in range(3)]
        alone = mine.generate(prompts[5], sampling=SHORT.replace(n=3))
        assert [result.text for result in found[15:18]] == [result.text for result in alone]


def test_each_prompt_of_a_call_has_its_own_deadline(engine: StarsEngine) -> None:
    with engine_with(engine, EngineParams(max_active=1)) as mine:
        hurried = PLAIN.replace(deadline_s=1e-6)
        aligns = [PLAIN, hurried, hurried, PLAIN]
        found = mine.generate(["a", "b", "c", "d"], align=aligns)
        reasons = [result.finish_reason for result in found]
        assert reasons == ["length", "deadline", "deadline", "length"]
        assert idle(mine)


# --- work in the background ---


def test_long_prompts_are_tokenized_in_the_background(
    engine: StarsEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    encode = MarkedEncoder.encode

    def recorded(self: MarkedEncoder, parts: Sequence[tuple[str, bool]]) -> Any:
        if sum(len(part) for part, _ in parts) > LONG_TEXT:
            threads.append(threading.current_thread().name)
        return encode(self, parts)

    monkeypatch.setattr(MarkedEncoder, "encode", recorded)
    with engine_with(engine, EngineParams()) as mine, pytest.raises(ContextOverflowError):
        mine.generate("a film " * LONG_TEXT)
    assert threads == ["stars-prepare"]


def test_grammars_are_compiled_in_the_background(
    engine: StarsEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    compile_ = Grammars._compile

    def recorded(self: Grammars, grammar: Any) -> Any:
        threads.append(threading.current_thread().name)
        return compile_(self, grammar)

    monkeypatch.setattr(Grammars, "_compile", recorded)
    with engine_with(engine, EngineParams()) as mine:
        sampling = SHORT.replace(grammar=ChoiceGrammar(choices=["one of these", "or this"]))
        texts = [result.text for result in mine.generate(["a", "b"], sampling=sampling)]
        assert all("one of these or this".find(text) >= 0 for text in texts)
        bad = SHORT.replace(grammar={"kind": "regex", "pattern": "("})
        with pytest.raises(ConfigError, match="cannot be used"):
            mine.generate("a", sampling=bad)
    assert threads == ["stars-prepare"] * 2


def test_the_vocabulary_is_read_for_grammars_in_the_background(
    engine: StarsEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    init = Grammars.__init__

    def recorded(self: Grammars, *args: Any) -> None:
        threads.append(threading.current_thread().name)
        init(self, *args)

    monkeypatch.setattr(Grammars, "__init__", recorded)
    sampling = SHORT.replace(grammar=ChoiceGrammar(choices=["one", "two"]))
    loaded: Any = engine.model
    model = TransformersModel(model=loaded.model, tokenizer=loaded.codec.tokenizer)
    with engine_with(engine, EngineParams(), TransformersBackend(model)) as mine:
        mine.generate(["a", "b"], sampling=sampling)
        mine.generate("c", sampling=sampling)
    assert threads == ["stars-prepare"]


@pytest.mark.slow
def test_the_engine_lets_others_read_slow_grammars(
    engine: StarsEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segments, lookaheads, openings and tokens tried one by one; texts do not depend on it."""
    readers: list[str] = []
    read = states._read

    def recorded(*args: Any) -> None:
        readers.append(threading.current_thread().name)
        read(*args)

    monkeypatch.setattr(states, "_read", recorded)
    align = AlignParams(
        segment_len=3,
        lookahead=2,
        num_candidates=3,
        alternatives=[Alternative(opening="ab", share=0.5)],
    )
    grammar = RegexGrammar(pattern="ab[a-z ,.]*")
    sampling = SamplingParams(seed=3, max_tokens=12, top_k=5, n=3, grammar=grammar)
    texts = []
    with engine_with(engine, EngineParams()) as mine:
        for slow_s in (0.0, math.inf):
            monkeypatch.setattr(states, "SLOW_S", slow_s)
            for _ in range(2):  # the grammar is compiled, then known
                results = mine.generate("a", sampling=sampling, align=align)
                texts.append([result.text for result in results])
            if slow_s == 0.0:
                assert set(readers) == {"stars-prepare", "stars-slow-grammar"}
    assert "stars-engine" in readers  # quick ones, while tokens are tried
    assert texts == [texts[0]] * 4
    assert len(set(texts[0])) > 1


def test_a_cancelled_call_is_not_continued_after_its_preparation(
    engine: StarsEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiling, go_on = threading.Event(), threading.Event()
    compile_ = Grammars._compile

    def slow(self: Grammars, grammar: Any) -> Any:
        compiling.set()
        assert go_on.wait(60)
        return compile_(self, grammar)

    monkeypatch.setattr(Grammars, "_compile", slow)
    with engine_with(engine, EngineParams()) as mine:
        sampling = SHORT.replace(grammar=ChoiceGrammar(choices=["never seen before"]))
        future = mine.submit("a", sampling=sampling)
        assert compiling.wait(60)
        assert mine.generate("b")[0].text  # while the grammar is compiled
        future.cancel()
        go_on.set()
        wait_until(lambda: idle(mine))
        assert mine.stats().num_cancelled == 1


def test_the_rules_of_a_schema_are_written_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    write = Rules._written

    def counted(self: Rules, form: Any) -> Any:
        written.append(form)
        return write(self, form)

    monkeypatch.setattr(Rules, "_written", counted)
    inner = {"type": "array", "items": {"type": "integer"}}
    properties = {f"p{index}": inner | {"maxItems": index + 1} for index in range(100)}
    json_rules("start", json.dumps({"type": "object", "properties": properties}))
    assert len(written) <= 102


# --- the prompt of the reward ---


def test_a_long_reward_prompt_is_cut_once(engine: StarsEngine, monkeypatch: Any) -> None:
    lengths = []
    encode_pieces = Codec._encode_parts

    def recorded(self: Codec, parts: Sequence[tuple[str, bool]]) -> list[int]:
        lengths.append(sum(len(part) for part, _ in parts))
        return encode_pieces(self, parts)

    monkeypatch.setattr(Codec, "_encode_parts", recorded)
    long = "I went to see the film on a rainy day. " * 5000
    reward = engine.reward
    prompt = RewardPrompt(long)
    texts = ["It was good.", "Bad.", "It was good."]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StarsWarning)  # that the prompt is cut; given once
        first, *again = (reward.score([RewardInput(prompt, text, ())])[0] for text in texts)
    assert first.truncated
    assert again[1].value == pytest.approx(first.value, abs=1e-4)
    longest = max(lengths)
    assert longest < len(long) / 4
    assert sum(length == longest for length in lengths) == 1


def test_a_cut_prompt_depends_on_nothing_else(engine: StarsEngine) -> None:
    codec = engine.model.codec
    text = "It was a good film, and I liked it. " * 50
    ids = codec.encode(text)
    cut = PromptCutter(codec, 64).last_tokens(RewardPrompt(text, tuple(ids)))
    assert text.endswith(cut.text)
    assert 60 <= len(codec.encode(cut.text)) <= 64
    assert cut.token_ids == tuple(ids[-64:])
    short = RewardPrompt("short")
    assert PromptCutter(codec, 64).last_tokens(short) is short


# --- stop strings ---

TEXT = st.text(alphabet="ab\n", max_size=12)
STOPS = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=5), max_size=6)


@given(TEXT, STOPS, st.integers(0, 12))
def test_stop_strings_are_found_as_by_looking_for_each(
    text: str, stops: list[str], after: int
) -> None:
    found = [
        index
        for stop in stops
        for index in range(len(text))
        if text.startswith(stop, index) and index + len(stop) > after
    ]
    assert StopStrings(stops).find(text, ends_after=after) == min(found, default=None)


# --- errors of one prompt ---


def test_whatever_one_prompt_raises_is_its_own(
    engine: StarsEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Grammars, grammar: Any) -> Any:
        raise SystemExit(3)

    monkeypatch.setattr(Grammars, "_compile", fail)
    with engine_with(engine, EngineParams()) as mine:
        bad = SHORT.replace(grammar=ChoiceGrammar(choices=["whatever"]))
        found = mine.generate(["a", "b", "c"], sampling=[SHORT, bad, SHORT], return_exceptions=True)
        assert isinstance(found[1], GenerationError)
        assert "SystemExit" in str(found[1])
        assert all(isinstance(found[index], StarsResult) for index in (0, 2))


@pytest.mark.slow
@pytest.mark.parametrize(
    "around",
    [
        lambda schema: {"type": "array", "items": schema},
        lambda schema: {"type": "object", "properties": {"a": schema}},
        lambda schema: {"anyOf": [schema, {"type": "null"}]},
    ],
)
def test_a_deeply_nested_schema_is_the_error_of_its_prompt(
    around: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(300):
        schema = around(schema)
    with pytest.raises(ConfigError, match="more than 200 levels deep"):
        SHORT.replace(grammar={"kind": "json", "json_schema": schema})
    for _ in range(900):
        schema = around(schema)
    deep = SHORT.model_copy(  # past the check
        update={"grammar": JsonGrammar.model_construct(kind="json", json_schema=schema)}
    )
    with StarsEngine() as calibrated:
        found = calibrated.generate(["a", "b"], sampling=[SHORT, deep], return_exceptions=True)
    assert isinstance(found[0], StarsResult)
    assert isinstance(found[1], Exception)


# --- errors of one answer ---


class Unreadable:
    """A model that fails when it reads, or judges, tokens of one prompt."""

    def __init__(self, model: Any, method: str, length: int) -> None:
        self._model, self._method, self._length = model, method, length
        self.error: BaseException = ValueError("cannot be read")
        self.lengths: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def completion_text(self, prompt_ids: Sequence[int], ids: Sequence[int]) -> Any:
        if self._method == "completion_text" and len(prompt_ids) == self._length and len(ids) > 8:
            raise self.error
        return self._model.completion_text(prompt_ids, ids)


@pytest.mark.slow
@pytest.mark.parametrize("error", [ValueError("cannot be read"), SystemExit(3)], ids=repr)
def test_a_draft_that_cannot_be_read_ends_its_request_only(
    engine: StarsEngine, error: BaseException
) -> None:
    prompts = ["The film", "I went to see it on a rainy day and", "Nobody", "A"]
    length = max(len(engine.model.codec.encode_prompt(prompt)) for prompt in prompts)
    model = Unreadable(engine.model, "completion_text", length)
    model.error = error
    align = AlignParams(schedule=ConstantSchedule(value=-5.0), segment_len=4, num_candidates=4)
    with engine_with(engine, EngineParams(), model) as mine:
        found = mine.generate(prompts, align=align, return_exceptions=True)
        assert isinstance(found[1], GenerationError)
        assert "parsing a draft failed" in str(found[1])
        assert found[1].result is not None
        assert len(found[1].result.token_ids) == 8
        assert all(isinstance(found[index], StarsResult) for index in (0, 2, 3))
    wanted = engine.generate(prompts, align=align, sampling=SHORT)
    assert [found[i].text for i in (0, 2, 3)] == [wanted[i].text for i in (0, 2, 3)]


def test_a_token_that_cannot_be_judged_ends_its_request_only(
    engine: StarsEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_end = engine.model.is_end

    def fail(token: int, sampling: SamplingParams) -> bool:
        if sampling.seed == 99:
            raise SystemExit(3)
        return bool(is_end(token, sampling))

    monkeypatch.setattr(engine.model, "is_end", fail)
    with engine_with(engine, EngineParams()) as mine:
        samplings = [SHORT, SHORT.replace(seed=99), SHORT]
        found = mine.generate(["a", "b", "c"], sampling=samplings, return_exceptions=True)
        assert [type(each) for each in found] == [StarsResult, GenerationError, StarsResult]


def test_a_reply_that_cannot_be_read_ends_its_request_only(
    engine: StarsEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = OutputProcessor.complete

    def fail(self: OutputProcessor, event: Any) -> Any:
        if event.prompt_index == 1:
            raise ValueError("no reply")
        return complete(self, event)

    monkeypatch.setattr(OutputProcessor, "complete", fail)
    with engine_with(engine, EngineParams()) as mine:
        found = mine.generate(["a", "b", "c"], return_exceptions=True)
        assert [type(each) for each in found] == [StarsResult, GenerationError, StarsResult]
        assert found[1].result is not None
        wait_until(lambda: idle(mine))


class _Counted(UserList[str]):
    """Stop strings; counts how often one of them is compared."""

    num_compared = 0

    def __getitem__(self, index: Any) -> Any:
        _Counted.num_compared += 1
        return super().__getitem__(index)


def test_stop_strings_that_begin_each_other_are_found_by_few_comparisons() -> None:
    stops = StopStrings(["aa" + "b" * number for number in range(1024)])
    stops._beginnings = [_Counted(each) for each in stops._beginnings]  # type: ignore[misc]
    assert stops._len_at("aa" + "b" * 700 + "c" * 500, 0) == 702
    assert stops._len_at("ac" * 600, 0) == 0
    assert 0 < _Counted.num_compared < 30


def test_background_work_that_nobody_needs_ends() -> None:
    background = BackgroundThreads("test")
    started, ended = threading.Event(), threading.Event()

    def work() -> None:
        try:
            while True:
                started.set()
                give_way()
        finally:
            ended.set()

    for stop in ("cancel", "close"):
        started.clear()
        ended.clear()
        future = background.submit(work)
        assert started.wait(60)
        future.cancel() if stop == "cancel" else background.close()
        assert ended.wait(60)


def test_background_work_pauses_from_the_first_step_of_a_request_on(
    engine: StarsEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine_with(engine, EngineParams()) as mine:
        mine.generate("a")
        background = mine._runtime._loop.background
        steps = []
        step = EngineCore.step

        def recorded(self: EngineCore) -> Any:
            steps.append((self.has_work(), background._is_busy()))
            return step(self)

        monkeypatch.setattr(EngineCore, "step", recorded)
        mine.generate("a")
        assert steps[0] == (True, True)
        assert all(has_work == is_busy for has_work, is_busy in steps)
        wait_until(lambda: not background._is_busy())


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a priority on Linux only")
def test_background_threads_have_a_low_priority() -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    background = BackgroundThreads("test")
    before = niceness()
    assert background.submit(niceness).result(60) > before
    assert niceness() == before
    background.close()
