"""A sequence classifier behind HTTP servers as reward model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from weakref import finalize

import torch

from stars_engine.config.rewards.server import ServerReward
from stars_engine.errors import ModelLoadError
from stars_engine.loading.models import read_config
from stars_engine.loading.served import load_served_tokenizer, tokenizer_source
from stars_engine.remote.client import ServerClient, ServerStats
from stars_engine.remote.reward_probe import ProbedReward, RewardProbe
from stars_engine.rewards.answer_reader import AnswerReader, reads_ids
from stars_engine.rewards.base import with_floor
from stars_engine.rewards.failures import FailurePolicy
from stars_engine.rewards.labels import names_of, pick_label, read_label
from stars_engine.tokenization.codec import Codec
from stars_engine.types import RewardInput, Score


class ServerRewardModel:
    """Asks servers for the scores of token ids; an `OffloadedReward`.

    Prompts and answers are encoded here, with the reward model's tokenizer and chat template. All
    candidates of a request are one call.

    Args:
        config: The servers, and how answers are read.
        lm_fingerprint: Fingerprint of the language model's tokenizer, which the reward model may
            share.

    Raises:
        ModelLoadError: A server cannot be used; the start probe says why.
    """

    batched = True
    ends_overdue_calls = True  # the client has timeouts of its own

    def __init__(self, config: ServerReward, lm_fingerprint: str | None = None) -> None:
        self._config = config
        self.name = config.shown_name
        self.failures = FailurePolicy.of(config)
        self.max_concurrency, self.timeout_s = config.max_concurrency, config.timeout_s
        codec = Codec(load_served_tokenizer(config))
        self.reads_ids = reads_ids(config, codec, lm_fingerprint, self.name)
        names = self._label_names()
        self.client = ServerClient(config)
        finalize(self, self.client.close).atexit = False
        try:
            self.probed = self.client.run(self._probe(codec, names))
        except BaseException:
            self.client.close()
            raise
        names = names or {index: str(index) for index in range(self.probed.num_labels)}
        self._label = pick_label(names, config.label, self.name)
        self._reader = AnswerReader(
            config,
            codec,
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
        scores = self.client.run(
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
            with_floor(value, self._config.floor, num_tokens=len(row.ids), truncated=row.truncated)
            for value, row in zip(values, rows, strict=True)
        ]

    async def _probe(self, codec: Codec, names: Mapping[int, str]) -> ProbedReward:
        probe = RewardProbe(self.client, self._config, codec, len(names) or None)
        return await probe.run()

    def _label_names(self) -> Mapping[int, str]:
        """Return the labels that the model's files name; empty if there is only a tokenizer."""
        with suppress(ModelLoadError):
            return names_of(read_config(tokenizer_source(self._config)))
        return {}

    @property
    def server_stats(self) -> ServerStats:
        """Counts of the requests so far."""
        return self.client.stats

    def end_calls(self) -> None:
        """Cancel the calls in progress and close the connections; a next call opens new ones."""
        self.client.close()

    def about(self) -> dict[str, str]:
        """Return a readable description."""
        served = self.probed.served
        return {
            "servers": ", ".join(each.url for each in self.client.endpoints.all),
            "kind": " ".join(filter(None, (served.kind, served.version))),
            "endpoint": f"{self.probed.endpoint.name} ({self.probed.endpoint.path})",
            "served model": served.name or "unnamed",
            "context": f"{self._reader.max_tokens or 'unlimited'} tokens",
            "reads": self._reader.about,
        }
