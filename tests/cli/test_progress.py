"""What commands say while they work."""

from __future__ import annotations

import pytest
from rich.progress import TimeRemainingColumn

from stars_engine.cli import progress
from stars_engine.cli.calibrate import _Stages
from stars_engine.cli.messages import messages
from stars_engine.cli.progress import Wait, in_words
from tests.support.engines import wait_until


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(7, "7 s"), (99, "99 s"), (100, "1 min 40 s"), (380.4, "6 min 20 s"), (7500, "2 h 5 min")],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_stages_of_a_calibration_and_the_prompts_within_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[tuple[str, bool]] = []

    def update(_: Wait, text: str, *, aloud: bool = True) -> None:
        said.append((text.split(", about", maxsplit=1)[0], aloud))

    monkeypatch.setattr(Wait, "update", update)
    stages = _Stages(Wait("loading"))
    stages.within(3, 8)
    stages.advance(2, 4)  # the first stage came from a checkpoint
    stages.within(5, 8)
    stages.advance(3, 4)
    stages.advance(4, 4)
    assert said == [
        ("calibrating, stage 1", True),
        ("calibrating, stage 1, 3 of 8 prompts", False),
        ("calibrating, stage 3 of 4", True),
        ("calibrating, stage 3 of 4, 5 of 8 prompts", False),
        ("calibrating, stage 4 of 4", False),
        ("calibrating, stage 4 of 4", False),
    ]


def test_without_a_terminal_each_part_is_a_line_and_is_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(messages, "say", said.append)
    monkeypatch.setattr(progress, "EVERY_S", 0.01)
    with progress.bars(TimeRemainingColumn()) as advance:
        advance("stored", 4, 4)
        assert said == []
        advance("first", 1, 3)
        assert said[0] == "first: 2 to do"
        advance("first", 2, 3)
        wait_until(lambda: "first: 2 of 3 (0 s)" in said)
        advance("second", 0, 5)
        assert "second: 5 to do" in said
