"""A causal language model as judge: how much more likely one answer is than another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import AutoModelForCausalLM

from stars_engine.config import YesNoReward
from stars_engine.loading.models import load_model
from stars_engine.rewards.encoding import context_of
from stars_engine.rewards.judge_reader import JudgeReader, check_has_template, label_words
from stars_engine.rewards.label_tokens import NextTokenLogits
from stars_engine.rewards.local_model import LocalRewardModel
from stars_engine.types import RewardInput, Score


class YesNoRewardModel(LocalRewardModel):
    """log p(positive) - log p(negative) for the token that follows the judge's prompt.

    Args:
        config: What to load, or the live objects.
    """

    _reader: JudgeReader

    def __init__(self, config: YesNoReward) -> None:
        super().__init__(config)
        check_has_template(config, self._codec, self.name)
        words = label_words(config, self._codec, self.name)
        self._model = model = load_model(config, AutoModelForCausalLM)
        self._device = model.get_input_embeddings().weight.device
        self._call = NextTokenLogits(model, words)
        self._sharing = self._find_sharing()
        limit = context_of(model, self._tokenizer, is_causal=True)
        self._reader = JudgeReader(config, self._codec, name=self.name, max_tokens=limit)
        self._choose_path()

    @torch.inference_mode()
    def score(self, inputs: Sequence[RewardInput]) -> list[Score]:
        """See `RewardModel`."""
        rows = [self._reader.read(item) for item in inputs]
        if not rows:
            return []
        logits = self._outputs(rows).double()
        values = (logits[:, 0] - logits[:, 1]).tolist()
        return [
            row.score(value, self._config.floor) for value, row in zip(values, rows, strict=True)
        ]
