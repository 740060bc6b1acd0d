"""Commands in docs/command-line.md run as shown."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.support.pages import ROOT, blocks
from tests.support.processes import run_python


def stars_commands() -> list[str]:
    lines = [
        line
        for _, block in blocks(ROOT / "docs" / "command-line.md", "bash")
        for line in block.splitlines()
    ]
    # The demo is run by a test of its own.
    return [
        line for line in lines if line.startswith("stars ") and not line.startswith("stars demo")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("command", stars_commands())
def test_commands_run(command: str, tmp_path: Path) -> None:
    args = shlex.split(command, comments=True)[1:]
    run = run_python("from stars_engine.cli import main; main()", *args, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
