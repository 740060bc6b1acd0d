"""The types of the project check."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_types_check() -> None:
    packages = ["stars_engine", "langchain_stars", "llamaindex_stars", "tools"]
    command = [sys.executable, "-m", "mypy", *packages]  # two runs would check most of it twice
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
