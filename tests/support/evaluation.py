"""Figures of evaluations that depend on speed."""

from __future__ import annotations

import re

# Seconds, and drafts that were not needed; names of figures and of columns.
SPEED = re.compile(r"(_s|^p50|^p95|^first_p.*|^seconds.*|^generated_times|^discarded)$")
