"""The static checks of the project pass: lint, format, spelling, words, imports, the site."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "-m", "ruff", "check", "."],
        [sys.executable, "-m", "ruff", "format", "--check", "."],
        [str(BIN / "typos")],
        [sys.executable, "tools/banned_words.py"],
        [str(BIN / "hadolint"), "Dockerfile"],
        [str(BIN / "lint-imports")],
        [sys.executable, "tools/docs_site.py"],
    ],
    ids=[
        "ruff check",
        "ruff format",
        "typos",
        "banned words",
        "hadolint",
        "import-linter",
        "documentation site",
    ],
)
def test_check(command: list[str]) -> None:
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
