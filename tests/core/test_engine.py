"""The engine: streams, threads, live objects, closing, results."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stars_engine import (
    AlignmentError,
    AlignParams,
    AutoSchedule,
    ConstantSchedule,
    EngineClosedError,
    FunctionReward,
    NoSchedule,
    RewardError,
    SamplingParams,
    StarsConfig,
    StarsEngine,
    StarsResult,
    TransformersModel,
)
from stars_engine.backends.transformers import TransformersBackend
from stars_engine.trace import read_jsonl, transcript, write_jsonl

SHORT = SamplingParams(seed=3, max_tokens=32)

ANY = AlignParams(schedule=NoSchedule())


@pytest.mark.slow
def test_the_embedded_pair_reaches_positive_rewards(engine: StarsEngine) -> None:
    prompts = ["This movie", "The acting", "I saw this film and", "My friend said that"]
    sampling = SamplingParams(seed=11, n=4, max_tokens=96)
    plain = engine.vanilla(prompts, sampling=sampling)
    aligned = engine.generate(prompts, sampling=sampling)
    mean = [sum(r.reward for r in arm) / len(arm) for arm in (plain, aligned)]
    assert mean[1] > mean[0] + 1.0
    assert all(math.isfinite(r.reward) for r in aligned)


@pytest.mark.slow
def test_a_stream_adds_up_to_the_result(engine: StarsEngine) -> None:
    prompts = ["This movie", "The acting"]
    events = list(engine.stream(prompts, sampling=SHORT))
    results = engine.generate(prompts, sampling=SHORT)
    for index, result in enumerate(results):
        mine = [event for event in events if event.prompt_index == index]
        assert "".join(event.text for event in mine) == result.text
        assert mine[-1].result.token_ids == result.token_ids
        assert [event.result for event in mine[:-1]] == [None] * (len(mine) - 1)


def test_a_stream_may_be_abandoned(engine: StarsEngine) -> None:
    stream = engine.stream("This movie", sampling=SHORT)
    next(stream)
    stream.close()
    assert engine.generate("This movie", sampling=SHORT)[0].text


@pytest.mark.slow
def test_threads_share_the_engine(engine: StarsEngine) -> None:
    prompts = [f"Film number {index}" for index in range(8)]
    alone = [engine.generate(prompt, sampling=SHORT)[0].text for prompt in prompts]
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda p: engine.generate(p, sampling=SHORT)[0].text, prompts))
        streams = list(
            pool.map(lambda p: "".join(e.text for e in engine.stream(p, sampling=SHORT)), prompts)
        )
    assert texts == alone == streams


@pytest.mark.slow
def test_many_more_requests_than_max_active(
    engine: StarsEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = SamplingParams(seed=1, n=12, max_tokens=20)
    all_at_once = engine.generate("The", sampling=sampling)
    monkeypatch.setattr("stars_engine.core.scheduler.MAX_ACTIVE", 5)
    few_at_a_time = engine.generate("The", sampling=sampling)
    assert [r.text for r in few_at_a_time] == [r.text for r in all_at_once]


@pytest.mark.slow
def test_live_objects(engine: StarsEngine) -> None:
    loaded = engine.model
    config = StarsConfig(
        model=TransformersModel(model=loaded.model, tokenizer=loaded.codec.tokenizer),
        reward=lambda prompt, completion: float(len(completion)),
        align=AlignParams(schedule=ConstantSchedule(value=0.0)),
    )
    [result] = StarsEngine(config).generate("This movie", sampling=SHORT)
    assert result.reward == len(result.text)


def test_custom_parts_do_not_get_the_embedded_thresholds(engine: StarsEngine) -> None:
    with StarsEngine(model=engine.model) as own:
        assert own.config.align.schedule == AutoSchedule()
    with StarsEngine(StarsConfig(align=ANY), model=engine.model) as own:
        assert own.config.align == ANY


def test_a_closed_engine_raises() -> None:
    with StarsEngine() as mine:
        pass
    with pytest.raises(EngineClosedError, match="new StarsEngine"):
        mine.generate("a")


def test_no_prompts_give_no_results(engine: StarsEngine) -> None:
    assert engine.generate([]) == []
    assert list(engine.stream([])) == []
    with pytest.raises(ValueError, match="n=0"):
        engine.best_of_n("a", 0)
    with pytest.raises(ValueError, match=r"n='a' is not allowed.*best_of_n\(prompts, 16\)"):
        engine.best_of_n(4, "a")  # type: ignore[arg-type]


def test_errors_carry_the_accepted_segments(engine: StarsEngine) -> None:
    schedule = {"kind": "per_segment", "values": [-math.inf, math.inf]}
    align = AlignParams(schedule=schedule, segment_len=8, max_attempts=2, on_exhausted="raise")
    with pytest.raises(AlignmentError, match="2 attempts") as caught:
        engine.generate("This movie", sampling=SHORT, align=align)
    assert len(caught.value.result.token_ids) == 8


def test_best_of_n_that_fails_reports_what_it_has_cost(engine: StarsEngine) -> None:
    calls: list[str] = []

    def reward(prompt: str, completion: str) -> float:
        calls.append(completion)
        if len(calls) > 2:
            raise ValueError("no more")
        return 1.0

    config = StarsConfig(
        model="stars:embedded-lm",
        reward=FunctionReward(function=reward, max_concurrency=1),
        align=AlignParams(schedule=NoSchedule(), num_candidates=1),
        sampling=SHORT.replace(max_tokens=4),
    )
    with StarsEngine(config, model=engine.model) as mine:
        with pytest.raises(RewardError) as caught:
            mine.best_of_n("a", 4)
        assert caught.value.result is not None
        num_drafted = caught.value.result.usage.num_drafted_tokens
        assert num_drafted >= 2
        assert mine.stats().num_drafted_tokens == num_drafted


# --- records ---


@pytest.mark.slow
def test_results_survive_json(engine: StarsEngine, tmp_path: Path) -> None:
    align = AlignParams(schedule=NoSchedule(), keep_rejected_text=True)  # thresholds of -inf
    results = engine.generate(["This movie", "A"], sampling=SHORT, align=align)
    results += engine.generate("B", sampling=SHORT)
    path = tmp_path / "trace.jsonl"
    write_jsonl(results[:2], path)
    write_jsonl(results[2:], path, append=True)
    assert list(read_jsonl(path)) == results
    assert StarsResult.model_validate_json(results[0].model_dump_json()) == results[0]
    assert results[0].segments[0].threshold == -math.inf


def test_nan_survives_json(engine: StarsEngine) -> None:
    [best] = engine.best_of_n("A", 2, sampling=SHORT)
    again = StarsResult.model_validate_json(best.model_dump_json())
    assert math.isnan(again.segments[0].attempts[0].threshold)
    assert again.model_dump_json() == best.model_dump_json()


@pytest.mark.slow
def test_the_transcript_shows_all_segments(engine: StarsEngine) -> None:
    [result] = engine.generate("This movie", sampling=SamplingParams(seed=2))
    text = transcript(result)
    for segment in result.segments:
        assert repr(segment.text) in text
        assert f"attempt {segment.num_attempts}" in text
    assert "rejecting" in text
    assert f"{result.usage.num_kept_tokens} tokens kept" in text
    align = AlignParams(schedule=ConstantSchedule(value=99), max_attempts=2, on_exhausted="stop")
    [stopped] = engine.generate("This movie", sampling=SHORT, align=align)
    assert "2 attempts abandoned" in transcript(stopped)
    [plain] = engine.vanilla("This movie", sampling=SHORT)
    assert "not judged" in transcript(plain)


@pytest.mark.slow
def test_sampling_defaults_come_from_the_model(stories260k: TransformersBackend) -> None:
    config = StarsConfig(
        model="a/name",
        reward=lambda prompt, completion: 1.0,
        align=AlignParams(schedule=NoSchedule()),
        sampling="model",
    )
    mine = StarsEngine(config, model=stories260k)
    own = stories260k.model.generation_config
    assert (own.temperature, own.top_p) == (1.0, 0.9)
    assert (mine.sampling.temperature, mine.sampling.top_p) == (1.0, 0.9)
    assert mine.sampling.max_tokens == SamplingParams().max_tokens  # left open by the checkpoint
    assert mine.generate("Once")[0].text
