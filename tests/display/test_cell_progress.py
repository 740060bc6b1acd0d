"""Progress below a notebook cell, in a real kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from jupyter_client.manager import start_new_kernel

from stars_engine.display.cell_progress import cell_progress, in_notebook

CELL = """
import time
from stars_engine import SamplingParams, StarsConfig, StarsEngine

def slow(prompt, completion):
    time.sleep(0.8)
    return 0.0

config = StarsConfig(
    model="stars:embedded-lm",
    reward=slow,
    align={"schedule": {"kind": "constant", "value": 0.0}, "segment_len": 4, "num_candidates": 1},
)
engine = StarsEngine(config).load()
"""
GENERATE = "len(engine.generate(['A film', 'The plot'], sampling=SamplingParams(max_tokens=8)))"


@pytest.fixture(scope="module")
def run() -> Iterator[Any]:
    """Runs a cell; returns the HTML that it displays and updates, in order, and its results."""
    manager, client = start_new_kernel()

    def execute(code: str) -> tuple[list[str], list[str]]:
        pages: list[str] = []
        results: list[str] = []

        def note(message: dict[str, Any]) -> None:
            kind, content = message["msg_type"], message["content"]
            if kind in ("display_data", "update_display_data"):
                pages.append(content["data"]["text/html"])
            elif kind == "execute_result":
                results.append(content["data"]["text/plain"])

        reply = client.execute_interactive(code, output_hook=note, timeout=120)
        assert reply["content"]["status"] == "ok", reply["content"]
        return pages, results

    yield execute
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.mark.slow
def test_a_long_call_shows_its_answers_and_then_nothing(run: Any) -> None:
    pages, results = run(CELL)
    assert results == []
    assert not pages or pages[-1] == ""  # loading may take a second
    pages, results = run(GENERATE)
    assert results == ["2"]
    assert "answers: 0 of 2" in pages[0]
    assert "<progress value='0' max='2'>" in pages[0]
    assert pages[-1] == ""


def test_nothing_is_shown_outside_of_notebooks() -> None:
    assert not in_notebook()
    with cell_progress(lambda: pytest.fail("not asked")) as show:
        assert show is None
