"""Fixtures of the server's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stars_engine import AlignParams, SamplingParams, StarsConfig
from tests.support.servers import RunningServer, random_chat, serving


@pytest.fixture(scope="module")  # other tests close all shared models
def server() -> Iterator[RunningServer]:
    """The embedded pair, and a chat model with random weights."""
    embedded = StarsConfig(
        align=AlignParams(num_candidates=4), sampling=SamplingParams(max_tokens=24)
    )
    with serving({"embedded": embedded, "chat": random_chat()}) as running:
        yield running
