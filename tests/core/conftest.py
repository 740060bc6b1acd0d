"""Engines that tests of scheduling share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stars_engine import EngineParams, StarsConfig, StarsEngine
from tests.support.engines import NEVER


@pytest.fixture
def busy(engine: StarsEngine) -> Iterator[StarsEngine]:
    """An engine of its own with room for one request at a time."""
    params = EngineParams(max_active=1, max_waiting=2)
    config = StarsConfig(align=NEVER, engine=params)
    with StarsEngine(config, model=engine.model, reward=engine.reward) as mine:
        yield mine
