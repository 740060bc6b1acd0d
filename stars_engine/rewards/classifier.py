"""A sequence classifier as reward model: encoder or causal; reads token ids or text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from stars_engine.config import ClassifierReward
from stars_engine.loading.models import load_model
from stars_engine.rewards.aggregation import check_reads_forward, not_causal
from stars_engine.rewards.answer_reader import AnswerReader, reads_ids
from stars_engine.rewards.batch_invariance import PROBES
from stars_engine.rewards.batching import at_columns, pad
from stars_engine.rewards.encoding import EncodedInput, context_of
from stars_engine.rewards.labels import names_of, pick_label, read_label
from stars_engine.rewards.local_model import LocalRewardModel, by_row
from stars_engine.types import RewardInput, Score


class ClassifierRewardModel(LocalRewardModel):
    """Reads prompt and completion as one sequence and returns the value of one label.

    Args:
        config: What to load, or the live objects.
        lm_fingerprint: Fingerprint of the language model's tokenizer. If the classifier has the
            same tokenizer, it reads the token ids directly: decoding and encoding them again may
            change them.
    """

    _reader: AnswerReader

    def __init__(self, config: ClassifierReward, lm_fingerprint: str | None = None) -> None:
        super().__init__(config)
        self._model = model = load_model(config, AutoModelForSequenceClassification)
        self._label = pick_label(names_of(model.config), config.label, self.name)
        self._independent = model.config.problem_type == "multi_label_classification"
        self.reads_ids = reads_ids(config, self._codec, lm_fingerprint, self.name)
        self._device = model.get_input_embeddings().weight.device
        # Causal classifiers find the last token by comparing ids with the padding id, which fails
        # if that id also occurs in the text. The head is applied at an explicit index instead.
        self._score_head = getattr(model, "score", None)
        if self._score_head is not None and not self._head_agrees():
            self._score_head = None
        is_causal = self._score_head is not None
        self._suffix_ids = [] if is_causal else self._find_suffix()
        self._sharing = self._find_sharing(self._suffix_ids)
        if config.aggregate != "last":
            self._check_causal(config.aggregate)
        limit = context_of(model, self._tokenizer, is_causal=is_causal)
        self._reader = AnswerReader(
            config,
            self._codec,
            name=self.name,
            max_tokens=limit,
            reads_ids=self.reads_ids,
            suffix_ids=self._suffix_ids,
        )
        if is_causal:
            self._choose_path()
        else:
            self._incremental, self.path = None, "whole texts (no causal head)"

    def score(self, inputs: Sequence[RewardInput]) -> list[Score]:
        """Score whole sequences; where the model allows it, compute only their new tokens."""
        each_token = self._config.aggregate != "last"
        return self._aggregated(self._score_rows(inputs, each_token=each_token))

    def token_scores(self, inputs: Sequence[RewardInput]) -> list[list[float]]:
        """Return the scores after each token of the answers; of an empty one, after the prompt.

        Raises:
            ModelLoadError: The model is not causal.
        """
        self._check_causal("mean")
        return [scores for scores, _ in self._score_rows(inputs, each_token=True)]

    @torch.inference_mode()
    def _score_rows(
        self, inputs: Sequence[RewardInput], *, each_token: bool
    ) -> list[tuple[list[float], EncodedInput]]:
        rows = [self._reader.read(item, each_token=each_token) for item in inputs]
        if not rows:
            return []
        return by_row(self._values(self._outputs(rows)), rows)

    def _find_suffix(self) -> list[int]:
        """Return the tokens that encoders expect after a text, such as [SEP].

        A causal classifier would read them as the end of the answer.
        """
        framed: list[int] = self._tokenizer("a", split_special_tokens=True)["input_ids"]
        body = self._codec.encode_prompt("a")
        return framed[len(body) :] if framed[: len(body)] == body else []

    # --- the forward pass ---

    def _values(self, logits: torch.Tensor) -> list[float]:
        values: list[float] = read_label(
            logits, self._label, self._config.output, independent=self._independent
        ).tolist()
        return values

    def _run_whole(self, rows: Sequence[EncodedInput]) -> list[torch.Tensor]:
        """Return (1, labels) of each row."""
        if self._score_head is not None:
            return super()._run_whole(rows)
        inputs = pad([row.ids for row in rows], self._tokenizer.pad_token_id or 0, self._device)
        return list(self._model(**inputs).logits[:, None])

    def _call(self, columns: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """Apply the head to given tokens; see `batching.CallAt`."""
        hidden = self._model.base_model(**inputs).last_hidden_state
        assert self._score_head is not None
        scores: torch.Tensor = self._score_head(at_columns(hidden, columns))
        return scores

    @torch.inference_mode()
    def _head_agrees(self) -> bool:
        """Check on an unpadded probe that the head at the last token equals the model's output."""
        probe = self._codec.encode_prompt("A short text to compare two ways on.")
        try:
            ours = self._outputs_at_end([probe])[0].float()
        except Exception:  # noqa: BLE001 - heads of other shapes fail in their own ways
            return False
        ids = torch.tensor([probe], device=self._device)
        plain = self._model(input_ids=ids).logits[0].float().to(ours.device)
        return ours.shape == plain.shape and torch.allclose(ours, plain, rtol=1e-3, atol=1e-3)

    def _check_causal(self, how: str) -> None:
        if self._score_head is None:
            raise not_causal(self.name, how)
        probe = self._codec.encode_prompt(PROBES[1])
        check_reads_forward(
            self._run_whole, probe, name=self.name, how=how, dtype=self._model.dtype
        )
