"""A sequence classifier as reward model: encoder or causal, by token ids or through text."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from stars_engine.chat.template import encode_chat, has_template
from stars_engine.codec import Codec
from stars_engine.config import ClassifierReward
from stars_engine.errors import ModelLoadError, StarsWarning
from stars_engine.hub import context_len, load_model, load_tokenizer
from stars_engine.rewards.base import Score, with_floor
from stars_engine.rewards.sharing import Sharing, batches, find_sharing
from stars_engine.types import RewardInput, RewardPrompt


class ClassifierRewardModel:
    """Reads prompt and completion as one sequence and returns one logit.

    Args:
        config: What to load, or the live objects.
        lm_fingerprint: Of the language model's tokenizer; where it is also the classifier's, token
            ids are passed on as they are. Decoding and encoding again would change them.
    """

    def __init__(self, config: ClassifierReward, lm_fingerprint: str | None = None) -> None:
        tokenizer = load_tokenizer(config)
        self._codec = Codec(tokenizer)
        self._tokenizer = tokenizer
        self._model = load_model(config, AutoModelForSequenceClassification)
        self._config = config
        self.name = config.name_or_path or type(self._model).__name__
        self._label = _pick_label(self._model.config, config.label, self.name)
        self.reads_ids = self._choose_reading(lm_fingerprint)
        self._device = self._model.get_input_embeddings().weight.device
        # Causal classifiers look for the last token that is not padding, by its id: wrong where
        # that id is also a token of the text. Their head is applied at an index of our own.
        self._score_head = getattr(self._model, "score", None)
        if self._score_head is not None and not self._head_agrees():
            self._score_head = None
        self._max_tokens = context_len(self._model.config, tokenizer)
        if self._score_head is None:
            self._max_tokens = _encoder_len(self._model, tokenizer, self._max_tokens)
        self._sharing = self._find_sharing()

    @property
    def model_class(self) -> str:
        """Class of the loaded model."""
        return type(self._model).__name__

    @torch.inference_mode()
    def score(self, inputs: Sequence[RewardInput]) -> list[Score]:
        """Score whole sequences, like lengths together."""
        rows = [self._encode(item) for item in inputs]
        values: dict[int, float] = {}
        for chunk in batches([len(row) for row in rows], self._config.batch_size, self._sharing):
            values |= zip(chunk, self._logits([rows[index] for index in chunk]), strict=True)
        return [
            with_floor(values[index], self._config.floor, num_tokens=len(row))
            for index, row in enumerate(rows)
        ]

    # --- reading ---

    def _encode(self, item: RewardInput) -> list[int]:
        if self.reads_ids:
            ids = [*self._prompt_ids(item.prompt), *item.token_ids]
        elif item.prompt.messages is not None and has_template(self._codec):
            ids = [*encode_chat(self._codec, item.prompt.messages), *self._codec.encode(item.text)]
        else:
            joint = "\n\n" if item.prompt.messages is not None else ""
            ids = self._codec.encode_prompt(item.prompt.text + joint + item.text)
            ids += self._suffix_ids()
        return self._fit(ids or self._codec.empty_prompt())

    def _prompt_ids(self, prompt: RewardPrompt) -> Sequence[int]:
        if prompt.messages is not None and has_template(self._codec):
            return encode_chat(self._codec, prompt.messages)
        if prompt.token_ids is not None:
            return prompt.token_ids
        return self._codec.encode_prompt(prompt.text)

    def _suffix_ids(self) -> list[int]:
        """What encoders expect after a text, such as [SEP]."""
        if self._score_head is not None:
            return []  # to a causal classifier it would say that the answer is over
        framed: list[int] = self._tokenizer("a", split_special_tokens=True)["input_ids"]
        body = self._codec.encode_prompt("a")
        return framed[len(body) :] if framed[: len(body)] == body else []

    def _fit(self, ids: list[int]) -> list[int]:
        """Cut from the left of the prompt what exceeds the classifier's context."""
        if self._max_tokens is None or len(ids) <= self._max_tokens:
            return ids
        warnings.warn(
            f"{self.name} reads {self._max_tokens} tokens at most; the beginning of longer prompts "
            "is cut off. Cure: a reward model with a longer context, or a shorter reward_prompt",
            StarsWarning,
            stacklevel=2,
        )
        prefix = self._codec.encode_prompt("")
        return [*prefix, *ids[len(ids) - self._max_tokens + len(prefix) :]]

    # --- the forward pass ---

    def _logits(self, rows: Sequence[Sequence[int]]) -> list[float]:
        width = max(len(row) for row in rows)
        pad_id = self._tokenizer.pad_token_id or 0
        ids = torch.tensor(
            [[*row, *[pad_id] * (width - len(row))] for row in rows], device=self._device
        )
        lengths = torch.tensor([len(row) for row in rows], device=self._device)
        mask = (torch.arange(width, device=self._device) < lengths[:, None]).long()
        if self._score_head is not None:
            hidden = self._model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
            last = (lengths - 1).to(hidden.device)
            rows_at = torch.arange(len(rows), device=hidden.device)
            logits = self._score_head(hidden[rows_at, last])  # (rows, labels)
        else:
            logits = self._model(input_ids=ids, attention_mask=mask).logits
        values: list[float] = logits[:, self._label].float().tolist()
        return values

    @torch.inference_mode()
    def _head_agrees(self) -> bool:
        """Check on one unpadded probe that the head on the last token is what the model does."""
        probe = self._codec.encode_prompt("A short text to compare two ways on.")
        try:
            ours = self._logits([probe])[0]
        except Exception:  # noqa: BLE001 - a head of another shape, failing in its own way
            return False
        ids = torch.tensor([probe], device=self._device)
        plain: float = self._model(input_ids=ids).logits[0, self._label].item()
        return abs(ours - plain) <= 1e-3 * max(1.0, abs(plain))

    @torch.inference_mode()
    def _find_sharing(self) -> Sharing:
        texts = ("Short.", "A longer text, to be scored alone and beside the short one.")
        short, long = ([*self._codec.encode_prompt(t), *self._suffix_ids()] for t in texts)
        return find_sharing(self._logits, short, long, name=self.name, dtype=self._model.dtype)

    def _choose_reading(self, lm_fingerprint: str | None) -> bool:
        if self._config.read != "auto":
            shares = self._config.read == "ids"
            if shares and lm_fingerprint not in (None, self._codec.fingerprint()):
                raise ModelLoadError(
                    f"read='ids', but {self.name} has another tokenizer than the language model. "
                    "Cure: read='text' or read='auto'"
                )
            return shares
        return lm_fingerprint is not None and lm_fingerprint == self._codec.fingerprint()


def _encoder_len(model: Any, tokenizer: Any, limit: int | None) -> int | None:
    """Bound a context length by what encoders say elsewhere.

    `max_position_embeddings` of RoBERTa and its kin counts the rows before the first position: up
    to the padding's, which is the padding token's id.
    """
    limits = [limit, getattr(tokenizer, "model_max_length", None)]
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            offset = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - offset)
    # A tokenizer without a limit says 10**30.
    return min((n for n in limits if n is not None and n < 10**9), default=None)


def _pick_label(config: Any, label: int | str | None, name: str) -> int:
    names: dict[int, str] = {index: config.id2label[index] for index in sorted(config.id2label)}
    known = ", ".join(f"{index} ({text})" for index, text in names.items())
    if label is None:
        if len(names) == 1:
            return 0
        raise ModelLoadError(
            f"{name} has {len(names)} labels: {known}. Cure: say which logit is the reward, "
            "label=<index or name>"
        )
    for index, text in names.items():
        if label in (index, text):
            return index
    raise ModelLoadError(f"label={label!r}: {name} has no such label. Cure: one of {known}")
