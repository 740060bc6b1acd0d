"""A process reward model: scores each step of an answer and aggregates the scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from stars_engine.config import ProcessReward
from stars_engine.errors import ModelLoadError
from stars_engine.loading.models import load_model
from stars_engine.rewards.aggregation import check_reads_forward
from stars_engine.rewards.batch_invariance import PROBES
from stars_engine.rewards.encoding import EncodedInput, context_of
from stars_engine.rewards.label_tokens import NextTokenLogits
from stars_engine.rewards.labels import names_of, pick_label, read_label
from stars_engine.rewards.local_model import LocalRewardModel, by_row
from stars_engine.rewards.step_reader import StepReader, one_token
from stars_engine.rewards.token_heads import load_token_head
from stars_engine.types import RewardInput, Score


class ProcessRewardModel(LocalRewardModel):
    """Puts a marker after each step and reads there the probability that the step is good.

    An answer that has no step yet is scored at a marker after the prompt.

    Args:
        config: What to load, or the live objects.
    """

    _reader: StepReader

    def __init__(self, config: ProcessReward) -> None:
        super().__init__(config)
        codec = self._codec
        self._convention = convention = config.resolved()
        assert convention.marker is not None
        self._marker = one_token("marker", convention.marker, codec, self.name)
        model: Any
        head = None
        if convention.head == "tokens":
            words = self._two_words()
            model = load_model(config, AutoModelForCausalLM)
            self._call = NextTokenLogits(model, words)
        else:
            self._call = labels = load_token_head(config)
            model, head = labels.model, labels.head
        self._model = model
        self._device = model.get_input_embeddings().weight.device
        self._label = self._find_label()
        self._sharing = self._find_sharing([self._marker])
        if config.aggregate == "ema":
            probe = [*codec.encode_prompt(PROBES[1]), self._marker]
            check_reads_forward(
                self._run_whole, probe, name=self.name, how=config.aggregate, dtype=model.dtype
            )
        limit = context_of(model, self._tokenizer, is_causal=True)
        self._reader = StepReader(config, codec, name=self.name, max_tokens=limit)
        self._choose_path(head)

    def steps(self, item: RewardInput) -> list[str]:
        """Return the steps of an answer that are to be scored."""
        return self._reader.steps(item)

    def step_scores(self, inputs: Sequence[RewardInput]) -> list[list[float]]:
        """Return the probability of each step; if there is none, the one after the prompt."""
        return [scores for scores, _ in self._score_steps(inputs)]

    def score(self, inputs: Sequence[RewardInput]) -> list[Score]:
        """See `RewardModel`."""
        return self._aggregated(self._score_steps(inputs))

    @torch.inference_mode()
    def _score_steps(self, inputs: Sequence[RewardInput]) -> list[tuple[list[float], EncodedInput]]:
        rows = [self._reader.read(item) for item in inputs]
        if not rows:
            return []
        values = read_label(self._outputs(rows), self._label, "probability").tolist()
        return by_row(values, rows)

    def _two_words(self) -> list[int]:
        """Return the token ids of the positive and the negative word."""
        convention = self._convention
        assert convention.positive is not None
        assert convention.negative is not None
        good = one_token("positive", convention.positive, self._codec, self.name)
        bad = one_token("negative", convention.negative, self._codec, self.name)
        if good == bad:
            raise ModelLoadError(
                f"positive and negative are the same token of {self.name}. Hint: choose two words "
                "that differ"
            )
        return [good, bad]

    # --- the forward pass ---

    @torch.inference_mode()
    def _find_label(self) -> int:
        """Check on a probe that the model returns labels for each token; return the label's index.

        Raises:
            ModelLoadError: The model returns no labels for tokens, or lacks the label.
        """
        if self._convention.head == "tokens":
            return 0  # the positive word
        try:
            [logits] = self._run_whole([EncodedInput([self._marker] * 3)])
        except Exception as error:
            raise _no_head(self.name, error) from error
        known = names_of(self._model.config)
        names = {index: known.get(index, str(index)) for index in range(logits.shape[-1])}
        return pick_label(names, self._convention.label, self.name)


def _no_head(name: str, found: object) -> ModelLoadError:
    return ModelLoadError(
        f"{name} does not return labels for each token ({found}). Hint: use a process reward model "
        "with a token classification head, or head='tokens' for a model that predicts the label as "
        "its next token"
    )
