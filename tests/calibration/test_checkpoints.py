"""Interrupted calibrations resume from their own checkpoint only."""

from __future__ import annotations

from pathlib import Path

import pytest

from stars_engine import CalibratedSchedule, ConfigError, StarsConfig, StarsEngine, calibrate
from tests.support.calibration import OPENINGS, QUICK, SAMPLING, assert_same


@pytest.mark.parametrize("name", ["nowhere/pilot.json", "folder"])
def test_a_checkpoint_that_cannot_be_written_fails_at_once(
    engine: StarsEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(StarsEngine, "decode", lambda *_, **__: pytest.fail("a pilot was run"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=r"checkpoint file: .*directory.*Hint: "):
        calibrate(engine, OPENINGS, checkpoint=tmp_path / name, **QUICK)


@pytest.mark.slow
def test_an_interrupted_calibration_resumes(
    engine: StarsEngine,
    schedule: CalibratedSchedule,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file, kept = tmp_path / "pilot.json", tmp_path / "kept.json"
    stages: list[int] = []

    def interrupted(done: int, total: int) -> None:
        assert total == 3
        if done == 2:
            kept.write_bytes(file.read_bytes())

    arguments = {"target_acceptance": 0.4, "seed": 4, "checkpoint": file, **QUICK}
    first = calibrate(engine, OPENINGS, progress=interrupted, **arguments)
    assert_same(first, schedule)
    assert not file.exists()  # it has ended
    kept.replace(file)
    again = calibrate(engine, OPENINGS, progress=lambda done, _: stages.append(done), **arguments)
    assert_same(again, schedule)
    assert stages == [3]  # the first two were not measured again
    assert again.stages[:2] == first.stages[:2]  # and are the same bit for bit
    assert "Resuming the calibration after 2 of 3 stages" in caplog.text
    file.write_text("{}")
    with pytest.raises(ConfigError, match=r"checkpoint.*delete it"):
        calibrate(engine, OPENINGS, **arguments)


@pytest.mark.slow
def test_a_checkpoint_of_another_calibration_is_not_used(
    engine: StarsEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, kept = tmp_path / "pilot.json", tmp_path / "kept.json"
    few = {"sampling": SAMPLING.replace(max_tokens=8, min_tokens=8), "segment_len": 8}
    calibrate(
        engine,
        OPENINGS[:8],
        checkpoint=file,
        progress=lambda *_: kept.write_bytes(file.read_bytes()),
        **few,
    )
    kept.replace(file)
    calibrate(engine, OPENINGS[:8], checkpoint=file, seed=9, **few)
    assert "another calibration" in caplog.text


@pytest.mark.slow
def test_a_checkpoint_of_other_code_is_not_used(
    engine: StarsEngine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The reward has the same name and other code: the first stage cannot be used."""
    module = tmp_path / "opinions_of_today.py"
    monkeypatch.syspath_prepend(str(tmp_path))
    module.write_text("def opinion(prompt, completion):\n    return len(completion)\n")
    file, kept = tmp_path / "pilot.json", tmp_path / "kept.json"
    config = StarsConfig(model="stars:embedded-lm", reward="opinions_of_today:opinion")
    arguments = {**QUICK, "sampling": SAMPLING.replace(max_tokens=16, min_tokens=16)}
    stages: list[int] = []

    def copy_first_stage(done: int, _: int) -> None:
        stages.append(done)
        if done == 1:
            kept.write_bytes(file.read_bytes())

    with StarsEngine(config, model=engine.model) as own:
        for comment in ("", "# a remark\n"):
            module.write_text(module.read_text() + comment)
            if kept.exists():
                kept.replace(file)
            calibrate(own, OPENINGS[:8], checkpoint=file, progress=copy_first_stage, **arguments)
        assert stages == [1, 2, 1, 2]
        assert "other weights or code (reward); starting a new calibration" in caplog.text
        kept.replace(file)
        calibrate(own, OPENINGS[:8], checkpoint=file, progress=copy_first_stage, **arguments)
    assert stages == [1, 2, 1, 2, 2]
