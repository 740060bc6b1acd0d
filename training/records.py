"""What a stage measured, kept and told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def record(out: Path, stage: str, figures: dict[str, Any]) -> None:
    """Merge one stage's figures into `metrics.json`."""
    path = out / "metrics.json"
    metrics = json.loads(path.read_text()) if path.exists() else {}
    metrics[stage] = figures
    path.write_text(json.dumps(metrics, indent=2) + "\n")
    say(f"{stage}: {json.dumps(figures)}")


def say(line: str) -> None:
    """Print progress at once, also into a file."""
    print(line, flush=True)
