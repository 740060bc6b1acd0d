"""The command `stars serve` as a process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]


@contextmanager
def command(*options: str, cwd: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """Run the command on a free port while the context is open."""
    code = "from stars_engine.cli import main; main()"
    arguments = [sys.executable, "-c", code, "serve", "--port", "0", *options]
    with subprocess.Popen(
        arguments,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def address(process: subprocess.Popen[str]) -> str:
    """Return where the server listens, once it does."""
    assert process.stderr is not None
    return next(found[0] for line in process.stderr if (found := re.search("http://.*", line)))
