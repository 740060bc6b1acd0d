"""A process reward model behind HTTP servers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stars_engine.config.rewards.server import ServerProcessReward
from stars_engine.remote.labels import TokenScores
from stars_engine.rewards.aggregation import aggregate
from stars_engine.rewards.labels import pick_label, read_label
from stars_engine.rewards.server import label_names
from stars_engine.rewards.server_base import ServedRewardModel
from stars_engine.rewards.step_reader import StepReader, one_token
from stars_engine.types import RewardInput, Score


class ServerProcessRewardModel(ServedRewardModel):
    """Reads the probability of a good step at the marker after each; see `ProcessRewardModel`.

    Args:
        config: The servers, and how steps are read.

    Raises:
        ModelLoadError: A server cannot be used.
    """

    _reader: StepReader

    def __init__(self, config: ServerProcessReward) -> None:
        super().__init__(config)
        self._config = config
        convention = config.resolved()
        assert convention.marker is not None
        marker = one_token("marker", convention.marker, self._codec, self.name)
        self._scores = TokenScores(self.client)
        num_labels = self._start(self._scores.probe(self._codec, marker))
        names = label_names(config)
        names = {index: names.get(index, str(index)) for index in range(num_labels)}
        self._label = pick_label(names, convention.label, self.name)
        limit = self._scores.served.context_len
        self._reader = StepReader(config, self._codec, name=self.name, max_tokens=limit)

    def score(self, inputs: Sequence[RewardInput]) -> list[Score]:
        """Score all inputs in one call."""
        if not inputs:
            return []
        config = self._config
        rows = [self._reader.read(item) for item in inputs]
        scores = self._ask(self._scores([row.ids for row in rows]))
        found = []
        for row, each in zip(rows, scores, strict=True):
            logits = torch.tensor([each[point] for point in row.points], dtype=torch.float64)
            steps = read_label(logits, self._label, "probability").tolist()
            value = aggregate(steps, config.aggregate, config.half_life)
            found.append(row.score(value, config.floor))
        return found

    def about(self) -> dict[str, str]:
        """Return a readable description."""
        return self._about(self._scores.served, self._scores.path)
