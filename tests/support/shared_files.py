"""Models and data that are not in the repository: paths in the folder `STARS_SHARED`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("STARS_SHARED", Path(__file__).parents[3] / "shared"))


def shared_model(name: str) -> str:
    """Return the directory of a real small model, or skip where there is none."""
    return str(_shared("models", name))


def shared_data(name: str) -> Path:
    """Return a file or folder of real data, or skip where there is none."""
    return _shared("data", name)


def _shared(kind: str, name: str) -> Path:
    path = SHARED / kind / name
    if not path.exists():
        pytest.skip(f"{name} is not here: set STARS_SHARED to a folder with {kind}/{name}")
    return path
