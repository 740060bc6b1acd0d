"""Measurements of a stage: stored in a file, and printed."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from stars_engine.files.disk import write_file


def record(out: Path, stage: str, figures: dict[str, Any]) -> None:
    """Merge one stage's figures into `metrics.json`."""
    path = out / "metrics.json"
    metrics = json.loads(path.read_text()) if path.exists() else {}
    metrics[stage] = figures
    write_file(path, json.dumps(metrics, indent=2) + "\n", "metrics")
    say(f"{stage}: {json.dumps(figures)}")


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array atomically, because later stages read whatever exists."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    write_file(path, buffer.getvalue(), "array")


def say(line: str) -> None:
    """Print progress at once, and append it to a file."""
    print(line, flush=True)
