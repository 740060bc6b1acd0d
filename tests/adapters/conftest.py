"""Fixtures that tests of adapters share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stars_engine import SamplingParams, StarsEngine
from tests.support.adapters import PROMPT, SETTINGS


@pytest.fixture(scope="module")
def one_runtime() -> Iterator[None]:
    """The embedded pair, loaded once for all adapters of a module."""
    with StarsEngine.shared() as keeper:
        yield
        assert keeper.stats().num_loads <= 1  # 0 if no test of this run needed it


@pytest.fixture(scope="module")
def expected(engine: StarsEngine) -> str:
    """What adapters with `SETTINGS` answer to `PROMPT`."""
    return engine.generate(PROMPT, sampling=SamplingParams(**SETTINGS))[0].text
