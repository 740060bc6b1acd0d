"""A token guard as reward model: a causal model that labels each token of an answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stars_engine.config import GuardReward
from stars_engine.errors import ModelLoadError
from stars_engine.rewards.aggregation import reads_forward
from stars_engine.rewards.answer_reader import AnswerReader, reads_ids
from stars_engine.rewards.batch_invariance import PROBES
from stars_engine.rewards.encoding import EncodedInput, context_of
from stars_engine.rewards.guard_heads import label_indices, load_guard_head
from stars_engine.rewards.local_model import LocalRewardModel, by_row
from stars_engine.types import RewardInput, Score


class GuardRewardModel(LocalRewardModel):
    """Reads prompt and completion; returns the probability of the allowed labels.

    Args:
        config: What to load, or the live objects.
        lm_fingerprint: Fingerprint of the language model's tokenizer. If the guard has the same
            tokenizer, it reads the token ids of the answer directly.
    """

    _reader: AnswerReader

    def __init__(self, config: GuardReward, lm_fingerprint: str | None = None) -> None:
        super().__init__(config)
        guard = load_guard_head(config)
        self._call = guard.labelled
        self._model = model = guard.labelled.model
        self.reads_ids = reads_ids(config, self._codec, lm_fingerprint, self.name)
        self._device = model.get_input_embeddings().weight.device
        num_labels = self._count_labels()
        self._allowed = label_indices(config, guard, num_labels, self.name)
        self._refused = [index for index in range(num_labels) if index not in self._allowed]
        self._sharing = self._find_sharing()
        limit = context_of(model, self._tokenizer, is_causal=True)
        self._reader = AnswerReader(
            config, self._codec, name=self.name, max_tokens=limit, reads_ids=self.reads_ids
        )
        self._choose_path(guard.labelled.head)

    def about(self) -> dict[str, str]:
        """Return a readable description."""
        return {**super().about(), "allows": ", ".join(self._config.allowed)}

    def score(self, inputs: Sequence[RewardInput]) -> list[Score]:
        """See `RewardModel`."""
        each_token = self._config.aggregate != "last"
        return self._aggregated(self._values(inputs, each_token=each_token))

    def token_scores(self, inputs: Sequence[RewardInput]) -> list[list[float]]:
        """Return the values after each token of the answers; of an empty one, after the prompt."""
        return [values for values, _ in self._values(inputs, each_token=True)]

    @torch.inference_mode()
    def _values(
        self, inputs: Sequence[RewardInput], *, each_token: bool
    ) -> list[tuple[list[float], EncodedInput]]:
        rows = [self._reader.read(item, each_token=each_token) for item in inputs]
        if not rows:
            return []
        logits = self._outputs(rows).double()
        allowed, refused = (
            torch.logsumexp(logits[:, indices], dim=-1)
            for indices in (self._allowed, self._refused)
        )
        odds = allowed - refused
        values = odds if self._config.output == "log_odds" else odds.sigmoid()
        return by_row(values.tolist(), rows)

    # --- the forward pass ---

    @torch.inference_mode()
    def _count_labels(self) -> int:
        """Check on a probe that the model labels each token and reads forward.

        Raises:
            ModelLoadError: It does not.
        """
        probe = self._codec.encode_prompt(PROBES[1])
        try:
            [logits] = self._run_whole([EncodedInput(probe)])
        except Exception as error:
            raise ModelLoadError(
                f"{self.name} does not label tokens ({error}). Hint: use a token classification "
                "model, or name the layers of its head in `head`"
            ) from error
        if not reads_forward(self._run_whole, probe, dtype=self._model.dtype):
            raise ModelLoadError(
                f"{self.name} is not causal: its label of a token depends on the text after it. "
                "Hint: use a causal token guard, such as Qwen3Guard-Stream, or call this model in "
                "a function (FunctionReward)"
            )
        return logits.shape[-1]
