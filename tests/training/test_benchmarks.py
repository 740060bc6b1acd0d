"""Benchmarks of the engine run, and their intervals are correct."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu_bringup
from benchmarks.local_engine import interval

ROOT = Path(__file__).parents[2]

RUNS = {
    "gpu": "--size tiny --device cpu --dtype float32 --length 40 --tokens 48 --prompts 3 "
    "--repetitions 1",
    "local_engine": "--lengths 40 --acceptances 0.5 --tokens 8 --segment-lens 4 --repetitions 1",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_small_run_reports_its_figures(name: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *RUNS[name].split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout.splitlines()[-1])
    assert report["paths"] == ["shared prefix", "new tokens only"]
    ratios = report["ratios"] if name == "gpu" else report["rows"][0]
    found = [value for value in ratios.values() if isinstance(value, list)]
    assert len(found) >= 4
    assert all(0 < low <= middle <= high < math.inf for low, middle, high in found)


@pytest.mark.slow
def test_the_bring_up_of_a_gpu_runs_every_part_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "bringup.json"
    options = "--device cpu --size tiny --speeds tiny --length 40 --tokens 48 --prompts 3"
    command = [sys.executable, "-m", "benchmarks.gpu_bringup", *options.split()]
    subprocess.run(
        [*command, "--repetitions", "1", "--out", str(out)], cwd=ROOT, check=True, timeout=600
    )
    parts = json.loads(out.read_text())["parts"]
    assert len(parts) == 12
    assert {name: part for name, part in parts.items() if not part["ok"]} == {}


def test_a_part_that_fails_is_recorded_with_its_traceback() -> None:
    found = gpu_bringup.run_part(lambda: {"ok": 1 / 0})
    assert found["ok"] is False
    assert found["error"] == "ZeroDivisionError: division by zero"
    assert "test_benchmarks.py" in found["traceback"]


@pytest.mark.parametrize(("count", "place"), [(1, 0), (5, 0), (6, 0), (8, 0), (9, 1), (20, 5)])
def test_intervals_are_the_order_statistics_of_textbooks(count: int, place: int) -> None:
    values = [float(value) for value in range(count)]
    assert interval(values[::-1]) == (place, (count - 1) / 2, count - 1 - place)


@pytest.mark.parametrize("count", [6, 9, 15])
def test_intervals_hold_the_median(count: int) -> None:
    draws = np.random.default_rng(count).exponential(size=(4000, count))
    held = [low <= math.log(2) <= high for low, _, high in map(interval, draws.tolist())]
    assert sum(held) / len(held) > 0.945
