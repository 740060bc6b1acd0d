"""A sequence classifier that vLLM runs in this process, as reward model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stars_engine.config.rewards.vllm import VLLMReward
from stars_engine.loading.models import load_tokenizer, read_config
from stars_engine.loading.vllm import load_vllm, vllm_source
from stars_engine.rewards.answer_reader import AnswerReader, reads_ids
from stars_engine.rewards.failures import FailurePolicy
from stars_engine.rewards.labels import names_of, pick_label, read_label
from stars_engine.tokenization.codec import Codec
from stars_engine.types import RewardInput, Score


class VLLMRewardModel:
    """Scores token ids with an engine of vLLM, whose prefix cache keeps what was read before.

    Args:
        config: What to load.
        lm_fingerprint: Fingerprint of the language model's tokenizer, which the reward model may
            share.

    Raises:
        ModelLoadError: vLLM cannot load the model.
        MissingExtraError: vLLM is not installed.
    """

    def __init__(self, config: VLLMReward, lm_fingerprint: str | None = None) -> None:
        self._config = config
        self.name = config.shown_name
        self.failures = FailurePolicy.of(config)
        source = vllm_source(config)
        codec = Codec(load_tokenizer(source))
        self.reads_ids = reads_ids(config, codec, lm_fingerprint, self.name)
        self._label = pick_label(names_of(read_config(source)), config.label, self.name)
        self.llm = load_vllm(config, "pooling")
        self._reader = AnswerReader(
            config,
            codec,
            name=self.name,
            max_tokens=int(self.llm.llm_engine.model_config.max_model_len),
            reads_ids=self.reads_ids,
        )

    def score(self, inputs: Sequence[RewardInput]) -> list[Score]:
        """See `RewardModel`."""
        from vllm import PoolingParams  # noqa: PLC0415 - an extra of its own
        from vllm.inputs import TokensPrompt  # noqa: PLC0415

        if not inputs:
            return []
        rows = [self._reader.read(item) for item in inputs]
        outputs = self.llm.classify(
            [TokensPrompt(prompt_token_ids=row.ids) for row in rows],
            pooling_params=PoolingParams(use_activation=False),
            use_tqdm=False,
        )
        scores = torch.tensor([output.outputs.probs for output in outputs], dtype=torch.float64)
        values = read_label(scores, self._label, self._config.output).tolist()
        return [
            row.score(value, self._config.floor) for value, row in zip(values, rows, strict=True)
        ]

    def about(self) -> dict[str, str]:
        """Return a readable description."""
        return {
            "class": "vLLM in this process",
            "context": f"{self._reader.max_tokens} tokens",
            "reads": self._reader.about,
        }
