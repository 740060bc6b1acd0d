"""A language model behind HTTP servers as judge."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from stars_engine.config.rewards.server import ServerYesNoReward
from stars_engine.remote.labels import LabelLogprobs
from stars_engine.rewards.judge_reader import JudgeReader, check_has_template, label_words
from stars_engine.rewards.server_base import ServedRewardModel
from stars_engine.types import RewardInput, Score


class ServerYesNoRewardModel(ServedRewardModel):
    """log p(positive) - log p(negative) after the judge's prompt; see `YesNoRewardModel`.

    Args:
        config: The servers, and the question.

    Raises:
        ModelLoadError: A server cannot be used.
    """

    _reader: JudgeReader

    def __init__(self, config: ServerYesNoReward) -> None:
        super().__init__(config)
        self._config = config
        check_has_template(config, self._codec, self.name)
        self._logprobs = LabelLogprobs(self.client, label_words(config, self._codec, self.name))
        self._start(self._logprobs.probe(self._codec))
        limit = self._logprobs.served.context_len
        # The answer is one more token.
        limit = None if limit is None else limit - 1
        self._reader = JudgeReader(config, self._codec, name=self.name, max_tokens=limit)

    def score(self, inputs: Sequence[RewardInput]) -> list[Score]:
        """Score all inputs at the same time, one request each."""
        if not inputs:
            return []
        rows = [self._reader.read(item) for item in inputs]

        async def ask() -> list[list[float]]:
            return await asyncio.gather(*(self._logprobs(row.ids) for row in rows))

        return [
            row.score(positive - negative, self._config.floor)
            for (positive, negative), row in zip(self._ask(ask()), rows, strict=True)
        ]

    def about(self) -> dict[str, str]:
        """Return a readable description."""
        return self._about(self._logprobs.served, self._logprobs.path)
