"""A sequence classifier behind HTTP servers as reward model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import torch

from stars_engine.config.rewards.server import ServerReward
from stars_engine.config.servers import Server
from stars_engine.errors import ModelLoadError
from stars_engine.loading.models import read_config
from stars_engine.loading.server_tokenizer import tokenizer_source
from stars_engine.remote.reward_probe import RewardProbe
from stars_engine.rewards.answer_reader import AnswerReader, reads_ids
from stars_engine.rewards.labels import names_of, pick_label, read_label
from stars_engine.rewards.server_base import ServedRewardModel
from stars_engine.types import RewardInput, Score


class ServerRewardModel(ServedRewardModel):
    """Asks servers for the scores of token ids; all candidates of a request are one call.

    Args:
        config: The servers, and how answers are read.
        lm_fingerprint: Fingerprint of the language model's tokenizer, which the reward model may
            share.

    Raises:
        ModelLoadError: A server cannot be used; the start probe says why.
    """

    _reader: AnswerReader

    def __init__(self, config: ServerReward, lm_fingerprint: str | None = None) -> None:
        super().__init__(config)
        self._config = config
        self.reads_ids = reads_ids(config, self._codec, lm_fingerprint, self.name)
        names = label_names(config)
        probe = RewardProbe(self.client, config, self._codec, len(names) or None)
        self.probed = self._start(probe.run())
        names = names or {index: str(index) for index in range(self.probed.num_labels)}
        self._label = pick_label(names, config.label, self.name)
        self._reader = AnswerReader(
            config,
            self._codec,
            name=self.name,
            max_tokens=self.probed.served.context_len,
            reads_ids=self.reads_ids,
        )

    def score(self, inputs: Sequence[RewardInput]) -> list[Score]:
        """Score all inputs in one call."""
        if not inputs:
            return []
        rows = [self._reader.read(item) for item in inputs]
        endpoint = self.probed.endpoint
        body = endpoint.body([row.ids for row in rows], self.probed.served.name)
        scores = self._ask(
            self.client.call(
                endpoint.path,
                body,
                lambda answer: endpoint.parse(answer, len(rows)),
                prefix=rows[0].ids,
            )
        )
        logits = torch.tensor(scores, dtype=torch.float64)
        values = read_label(logits, self._label, self._config.output).tolist()
        return [
            row.score(value, self._config.floor) for value, row in zip(values, rows, strict=True)
        ]

    def about(self) -> dict[str, str]:
        """Return a readable description."""
        endpoint = self.probed.endpoint
        return self._about(self.probed.served, f"{endpoint.name} ({endpoint.path})")


def label_names(config: Server) -> Mapping[int, str]:
    """Return the labels that a model's files name; empty if there is only a tokenizer."""
    with suppress(ModelLoadError):
        return names_of(read_config(tokenizer_source(config)))
    return {}
