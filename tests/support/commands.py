"""The command `stars` in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.processes import run_python

COMMAND = [sys.executable, "-c", "from stars_engine.cli import main; main()"]


def stars(*args: str, stdin: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess:
    env = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    return run_python(COMMAND[-1], *args, stdin=stdin, cwd=cwd, env=env)
