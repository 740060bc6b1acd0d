"""The command line in a process of its own, and figures of evaluations that depend on speed."""

from __future__ import annotations

import re
import sys

COMMAND = [sys.executable, "-c", "from stars_engine.cli import main; main()"]

# Seconds, and drafts that were not needed; names of figures and of columns.
SPEED = re.compile(r"(_s|^p50|^p95|^first_p.*|^seconds.*|^generated_times|^discarded)$")
