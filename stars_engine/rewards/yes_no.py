"""A causal language model as judge: how much more likely one answer is than another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import AutoModelForCausalLM

from stars_engine.config import YesNoReward
from stars_engine.loading.models import load_model, load_tokenizer
from stars_engine.rewards.encoding import context_of
from stars_engine.rewards.failures import FailurePolicy
from stars_engine.rewards.judge_reader import JudgeReader, check_has_template, label_words
from stars_engine.rewards.label_tokens import NextTokenLogits
from stars_engine.rewards.local_model import LocalRewardModel
from stars_engine.rewards.self_check import select_runner
from stars_engine.tokenization.codec import Codec
from stars_engine.types import RewardInput, Score


class YesNoRewardModel(LocalRewardModel):
    """log p(positive) - log p(negative) for the token that follows the judge's prompt.

    Args:
        config: What to load, or the live objects.
    """

    _reader: JudgeReader

    def __init__(self, config: YesNoReward) -> None:
        self._tokenizer = load_tokenizer(config)
        self._codec = codec = Codec(self._tokenizer)
        self._config = config
        self.failures = FailurePolicy.of(config)
        self.name = config.name_or_path or type(config.model).__name__
        check_has_template(config, codec, self.name)
        words = label_words(config, codec, self.name)
        self._model = model = load_model(config, AutoModelForCausalLM)
        self._device = model.get_input_embeddings().weight.device
        self._call = NextTokenLogits(model, words)
        self._sharing = self._find_sharing()
        limit = context_of(model, self._tokenizer, is_causal=True)
        self._reader = JudgeReader(config, codec, name=self.name, max_tokens=limit)
        self._incremental, self.path = select_runner(
            model,
            self._call,
            self._run_whole,
            context_len=limit,
            batch_size=config.batch_size,
            sharing=self._sharing,
        )

    @torch.inference_mode()
    def score(self, inputs: Sequence[RewardInput]) -> list[Score]:
        """See `RewardModel`."""
        rows = [self._reader.read(item) for item in inputs]
        if not rows:
            return []
        return [
            row.score(value, self._config.floor)
            for value, row in zip(self._values(self._outputs(rows)), rows, strict=True)
        ]

    # --- the forward pass ---

    def _values(self, logits: torch.Tensor) -> list[float]:
        logits = logits.double()
        values: list[float] = (logits[:, 0] - logits[:, 1]).tolist()
        return values
