"""A reward model that records what it scores."""

from __future__ import annotations

from collections.abc import Sequence

from stars_engine.types import RewardInput


class RecordingReward:
    """Scores everything 0 and records its inputs."""

    def __init__(self) -> None:
        self.inputs: list[RewardInput] = []

    def score(self, inputs: Sequence[RewardInput]) -> list[float]:
        self.inputs += inputs
        return [0.0] * len(inputs)
