"""Calibrated thresholds know the weights and the code that they were made for."""

from __future__ import annotations

import shutil
import warnings
from importlib import resources
from pathlib import Path

import pytest

from stars_engine import CalibratedSchedule, SamplingParams, StarsConfig, StarsEngine, StarsWarning
from stars_engine.calibration.settings import identity, warn_of_mismatch
from stars_engine.calibration.weight_hashes import weight_hashes
from stars_engine.config import FunctionReward


def praises(prompt: str, completion: str) -> float:
    return float("good" in completion)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    own = resources.files("stars_engine") / "embedded" / "reward"
    return Path(shutil.copytree(str(own), tmp_path / "reward"))


def with_reward(folder: Path) -> StarsConfig:
    return StarsConfig(model="stars:embedded-lm", reward=str(folder), align="best")


def change(folder: Path) -> None:
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-4:] = b"\0\1\2\3"
    weights.write_bytes(bytes(data))


def test_a_hash_is_that_of_the_weights_wherever_they_lie(copy: Path) -> None:
    hashes = weight_hashes(with_reward(copy))
    assert hashes == weight_hashes(StarsConfig())
    moved = copy.rename(copy.parent / "elsewhere")
    assert weight_hashes(with_reward(moved)) == hashes
    change(moved)
    changed = weight_hashes(with_reward(moved))
    assert changed["model"] == hashes["model"]
    assert changed["reward"] != hashes["reward"]


def test_other_weights_behind_the_same_name_warn(copy: Path, schedule: CalibratedSchedule) -> None:
    made_for = {**schedule.made_for, "weights": weight_hashes(with_reward(copy))}
    made_for["reward"] = identity(with_reward(copy).reward)
    own = schedule.replace(made_for=made_for)
    align = with_reward(copy).align.replace(schedule=own)
    sampling = SamplingParams(max_tokens=24, min_tokens=24)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_mismatch(with_reward(copy), align, sampling)
        renamed = Path(shutil.copytree(copy, copy.parent / "renamed"))
        warn_of_mismatch(with_reward(renamed), align, sampling)  # the same weights
    change(copy)
    with pytest.warns(StarsWarning, match="the weights or code of the reward differ"):
        warn_of_mismatch(with_reward(copy), align, sampling)


def test_a_calibration_stores_the_hashes(engine: StarsEngine, schedule: CalibratedSchedule) -> None:
    assert schedule.made_for["weights"] == weight_hashes(engine.config)
    assert set(schedule.made_for["weights"]) == {"model", "reward"}


def test_a_function_and_its_name_are_one_thing() -> None:
    by_name = FunctionReward(function=f"{__name__}:praises")
    assert identity(by_name) == identity(FunctionReward(function=praises))
