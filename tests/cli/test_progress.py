"""What commands say while they work."""

from __future__ import annotations

import pytest

from stars_engine.cli.calibrate import _Stages
from stars_engine.cli.progress import Wait, in_words


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
