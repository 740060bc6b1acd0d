"""`AutoSchedule`: thresholds are found when they are first needed, once, and cached."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from stars_engine import (
    AlignParams,
    AutoSchedule,
    CalibratedSchedule,
    ConfigError,
    EngineParams,
    SamplingParams,
    StarsConfig,
    StarsEngine,
)
from stars_engine.calibration import auto
from stars_engine.calibration import cache as kept
from stars_engine.rewards.base import RewardModel
from stars_engine.types import RewardInput, Score
from tests.support.calibration import OPENINGS, Scaled
from tests.support.engines import until

AUTO = AlignParams(
    schedule=AutoSchedule(budget=2.0, prompts=OPENINGS[:8], segment_len=8), max_attempts=6
)
TINY = SamplingParams(max_tokens=8, seed=5)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(kept.CACHE_VARIABLE, str(tmp_path))
    return tmp_path / "calibrations"


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the calibrations that run."""
    made: list[int] = []
    real = auto.calibrate

    def counted(*args: object, **kwargs: object) -> object:
        made.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(auto, "calibrate", counted)
    return made


def test_the_log_names_the_stage_and_the_prompts_within_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(auto, "LOG_EVERY_S", 0.0)
    stages = auto._StageLog()
    with caplog.at_level(logging.WARNING):
        stages.within(3, 8)
        stages(1, 2)
        stages.within(5, 8)
        stages(2, 2)
    first, second, third = caplog.messages
    assert first == "Calibration: stage 1, 3 of 8 prompts"
    assert second.startswith("Calibration: stage 1 of 2 is done, about ")
    assert third == "Calibration: stage 2 of 2, 5 of 8 prompts"


@pytest.mark.slow
def test_thresholds_are_found_once_and_cached(
    cache: Path, runs: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    config = StarsConfig(align=AUTO, sampling=TINY)
    with StarsEngine(config) as first, ThreadPoolExecutor(4) as pool:
        with caplog.at_level(logging.WARNING):
            answers = list(pool.map(lambda _: first.generate("A film")[0], range(4)))
        assert "Calibrating thresholds for budget=2.0 on 8 pilot prompts" in caplog.text
        assert len({answer.token_ids for answer in answers}) == 1
        assert answers[0].segments[0].threshold is not None
    assert len(runs) == 1
    [file] = cache.glob("*.yaml")
    assert f"The calibration is cached in {file}" in caplog.text
    kept = CalibratedSchedule.from_file(file)
    with StarsEngine(config) as second:  # another process would do the same
        [answer] = second.generate("A film")
        assert answer.token_ids == answers[0].token_ids
        assert answer.schedule_hash == kept.content_hash()
        second.generate("A film", align=AUTO.replace(max_attempts=5))
    assert len(runs) == 2  # other settings, other thresholds


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sampling": TINY.replace(temperature=0)}, ["temperature", "above 0"]),
    ],
)
def test_settings_without_thresholds_fail_before_the_calibration(
    cache: Path,
    runs: list[int],
    caplog: pytest.LogCaptureFixture,
    settings: dict,
    words: list[str],
) -> None:
    config = StarsConfig(**{"align": AUTO, "sampling": TINY, **settings})
    with StarsEngine(config) as own, pytest.raises(ConfigError) as caught:
        own.generate("A film")
    for word in [*words, "ConstantSchedule"]:
        assert word in str(caught.value)
    assert "Calibrating" not in caplog.text
    assert runs == []


@pytest.mark.slow
def test_fewer_requests_at_once_than_pilot_prompts(cache: Path, runs: list[int]) -> None:
    config = StarsConfig(align=AUTO, sampling=TINY, engine=EngineParams(max_active=2))
    with StarsEngine(config) as own:
        assert own.generate("A film")[0].text
    assert len(runs) == 1


@pytest.mark.slow
def test_one_process_calibrates_while_others_wait(cache: Path, tmp_path: Path) -> None:
    script = tmp_path / "ask.py"
    script.write_text(
        "import logging, torch\n"
        "from stars_engine import AlignParams, AutoSchedule, SamplingParams, StarsConfig, "
        "StarsEngine\n"
        "torch.set_num_threads(1)\n"
        "logging.basicConfig(level=logging.WARNING)\n"
        "auto = AutoSchedule(budget=2.0, prompts=['A film', 'The film'] * 4, segment_len=8)\n"
        "sampling = SamplingParams(max_tokens=8, seed=5)\n"
        "config = StarsConfig(align=AlignParams(schedule=auto), sampling=sampling)\n"
        "with StarsEngine(config) as engine:\n"
        "    print(engine.generate('A')[0].token_ids)\n"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, str(script)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        for _ in range(2)
    ]
    outputs = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert sum("Calibrating thresholds" in errors for _, errors in outputs) == 1


@pytest.mark.slow
def test_a_damaged_cache_file_is_replaced(
    cache: Path, runs: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    config = StarsConfig(align=AUTO, sampling=TINY)
    with StarsEngine(config) as engine:
        engine.generate("A")
    [file] = cache.glob("*.yaml")
    file.write_text("stages: nothing")
    with StarsEngine(config) as engine:
        engine.generate("A")
    assert len(runs) == 2
    assert "Replaced an invalid cached calibration" in caplog.text
    assert CalibratedSchedule.from_file(file)


def test_a_calibration_that_cannot_be_cached_is_not_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(kept.CACHE_VARIABLE, str(tmp_path / "file"))
    stage = {"intercept": 0.0, "slope": 1.0, "offset": 0.0, "sigma": 1.0}
    found = CalibratedSchedule(stages=[stage], segment_len=8)
    monkeypatch.setattr(auto, "calibrate", lambda *_, **__: found)
    with StarsEngine(StarsConfig(align=AUTO, sampling=TINY)) as engine:
        engine.generate("A")
    [said] = [message for message in caplog.messages if "cached" in message]
    assert said.startswith("The calibration cannot be cached in")
    assert "set STARS_CACHE_DIR to another directory" in said
    assert kept.described_cache() == (
        f"not cached: nothing can be written to {tmp_path}/file/calibrations. Hint: set "
        "STARS_CACHE_DIR to another directory"
    )
    for folder in ("~nobody_/c", str(tmp_path / "new")):
        monkeypatch.setenv(kept.CACHE_VARIABLE, folder)
        assert kept.described_cache().startswith("cached in") == (folder != "~nobody_/c")


@pytest.mark.slow
def test_the_deadline_excludes_calibration(cache: Path, runs: list[int]) -> None:
    with StarsEngine(StarsConfig(align=AUTO, sampling=TINY)) as engine:
        engine.load()
        align = AUTO.replace(deadline_s=0.5)
        assert engine.generate("A", align=align)[0].finish_reason != "deadline"
    assert len(runs) == 1


@pytest.mark.slow
async def test_event_loops_run_during_calibration(cache: Path, runs: list[int]) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.005)
            ticks += 1

    with StarsEngine(StarsConfig(align=AUTO, sampling=TINY)) as engine:
        await engine.aload()
        ticking = asyncio.create_task(tick())
        [one], events = await asyncio.gather(engine.agenerate("A"), _collect(engine))
        ticking.cancel()
    assert one.text == "".join(event.text for event in events)
    assert len(runs) == 1
    assert ticks > 5


async def _collect(engine: StarsEngine) -> list:
    return [event async for event in engine.astream("A")]


def test_baselines_need_no_thresholds(cache: Path, runs: list[int]) -> None:
    with StarsEngine(StarsConfig(align=AUTO, sampling=TINY)) as engine:
        engine.vanilla("A")
        engine.best_of_n("A", 2)
    assert runs == []


@pytest.mark.slow
def test_custom_parts_are_calibrated_per_engine(
    engine: StarsEngine, cache: Path, runs: list[int]
) -> None:
    config = StarsConfig(align=AUTO, sampling=TINY)
    reward = Scaled(engine.reward, 2.0)
    with StarsEngine(config, model=engine.model, reward=reward) as own:
        own.generate("A")
        own.generate("B")
    assert len(runs) == 1
    assert not cache.exists()  # no file could say whose they are


@pytest.mark.slow
def test_one_calibration_serves_answers_of_all_lengths_up_to_its_own(
    engine: StarsEngine, cache: Path, runs: list[int]
) -> None:
    config = StarsConfig(align=AUTO, sampling=TINY)
    with StarsEngine(config, model=engine.model, reward=engine.reward) as own:
        answers = {
            length: own.generate("A film", sampling=TINY.replace(max_tokens=length))[0]
            for length in (5, 8, 20, 32)
        }
        assert len(runs) == 1
        long = answers[32].segments
        for length, answer in answers.items():
            for ours, theirs in zip(answer.segments[: length // 8], long, strict=False):
                assert ours.threshold == pytest.approx(theirs.threshold, abs=1e-4)
        own.generate("A film", sampling=TINY.replace(max_tokens=33))
        assert len(runs) == 2


@pytest.mark.slow
def test_several_sampling_settings_share_one_check_in_one_call(
    engine: StarsEngine, cache: Path, runs: list[int]
) -> None:
    """Thresholds are those of each pair of test and sampling, not of the test alone."""
    config = StarsConfig(align=AUTO, sampling=TINY)
    samplings = [TINY.replace(temperature=t) for t in (0.8, 1.5)]
    with StarsEngine(config, model=engine.model, reward=engine.reward) as own:
        together = own.generate(["A film"] * 3, sampling=[*samplings, samplings[0]], align=AUTO)
        assert len(runs) == 2
        alone = [own.generate("A film", sampling=s, align=AUTO)[0] for s in samplings]
    assert len(runs) == 2
    hashes = [result.schedule_hash for result in together]
    assert hashes == [alone[0].schedule_hash, alone[1].schedule_hash, alone[0].schedule_hash]
    assert hashes[0] != hashes[1]
    assert [r.token_ids for r in together[:2]] == [r.token_ids for r in alone]


class NoThreads(ThreadPoolExecutor):
    """The executor of an event loop, which must not be used."""

    def submit(self, *args: object, **kwargs: object) -> object:
        raise AssertionError("a thread of the event loop was taken")


class Held:
    """A reward model that blocks, from the second segment on, until it is released."""

    reads_ids = True

    def __init__(self, inner: RewardModel) -> None:
        self._inner, self.go, self.longest = inner, threading.Event(), 0
        self.reached = threading.Event()

    def score(self, inputs: Sequence[RewardInput]) -> list[Score]:
        self.longest = max(self.longest, *(len(item.token_ids) for item in inputs))
        if self.longest > 8:
            self.reached.set()
            assert self.go.wait(60)
        return self._inner.score(inputs)


def pilots() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "stars-calibration"]


async def test_a_cancelled_caller_stops_waiting_at_once(
    engine: StarsEngine, cache: Path, runs: list[int]
) -> None:
    """No thread of the event loop is used; the pilot continues for the remaining caller."""
    reward = Held(engine.reward)
    asyncio.get_running_loop().set_default_executor(NoThreads())
    with StarsEngine(
        StarsConfig(align=AUTO, sampling=TINY), model=engine.model, reward=reward
    ) as own:
        calls = [asyncio.create_task(own.agenerate("A")) for _ in range(40)]
        reading = asyncio.create_task(_collect(own))
        await until(reward.reached.is_set)
        for call in [*calls[1:], reading]:
            call.cancel()
        gone = await asyncio.gather(*calls[1:], reading, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in gone)
        assert not calls[0].done()  # the reward is still being waited for
        reward.go.set()
        [answer] = await calls[0]
    assert answer.text
    assert len(runs) == 1


@pytest.mark.slow
async def test_a_pilot_without_callers_stops_at_its_next_stage(
    engine: StarsEngine, cache: Path, runs: list[int]
) -> None:
    reward = Held(engine.reward)
    config = StarsConfig(align=AUTO, sampling=TINY.replace(max_tokens=32, min_tokens=32))
    with StarsEngine(config, model=engine.model, reward=reward) as own:
        call = asyncio.create_task(own.agenerate("A"))
        await until(reward.reached.is_set)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        reward.go.set()
        await until(lambda: not pilots())
        assert reward.longest <= 16  # two of four stages
        [answer] = await own.agenerate("A")  # who comes later has thresholds made anew
    assert answer.text
    assert len(runs) == 2


@pytest.mark.slow
def test_waiting_for_another_process_is_logged(
    cache: Path, runs: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kept, "WARN_AFTER_S", 0.0)
    monkeypatch.setattr(kept, "WARN_EVERY_S", 0.0)
    monkeypatch.setattr(kept, "POLL_S", 0.05)
    config = StarsConfig(align=AUTO, sampling=TINY)
    with StarsEngine(config) as engine, ThreadPoolExecutor(1) as pool:
        engine.generate("A")
        [file] = cache.glob("*.yaml")
        file.unlink()
        file.with_suffix(".pid").write_text("4321")
        with StarsEngine(config) as other:
            with FileLock(file.with_suffix(".lock")):
                answer = pool.submit(other.generate, "A")
                while caplog.text.count("process 4321") < 2:
                    time.sleep(0.01)
                assert not answer.done()
            assert answer.result()
    assert str(file.with_suffix(".lock")) in caplog.text
    assert "timeout_s" in caplog.text
    assert len(runs) == 2
    assert not file.with_suffix(".pid").exists()
