"""A process reward model: a score for each step of an answer, and one reward from them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from stars_engine.chat.answers import frame
from stars_engine.chat.template import Rendered, defuse, encode_rendered, has_template
from stars_engine.codec import Codec
from stars_engine.config import ProcessReward
from stars_engine.errors import ModelLoadError
from stars_engine.hub import load_model, load_tokenizer
from stars_engine.rewards.base import Score, with_floor
from stars_engine.rewards.batching import Batch, in_batches, last_logits, pad
from stars_engine.rewards.failures import FailurePolicy
from stars_engine.rewards.heads import load_token_head
from stars_engine.rewards.labels import names_of, pick_label, read_label
from stars_engine.rewards.reading import Reader, Row, TextTemplate, context_of
from stars_engine.rewards.sharing import PROBES, Sharing, find_sharing
from stars_engine.types import RewardInput, RewardPrompt

_AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {
    "last": lambda steps: steps[-1],
    "min": min,
    "mean": lambda steps: math.fsum(steps) / len(steps),
    "product": math.prod,
}


class ProcessRewardModel:
    """Puts a marker after each step and reads there how probably the step is good.

    An answer without a step yet is scored by a marker after the prompt.

    Args:
        config: What to load, or the live objects.
    """

    def __init__(self, config: ProcessReward) -> None:
        self._tokenizer = load_tokenizer(config)
        self._codec = codec = Codec(self._tokenizer)
        self._config = config
        self._convention = convention = config.resolved()
        self.failures = FailurePolicy.of(config)
        self.name = config.name_or_path or type(config.model).__name__
        assert convention.marker is not None
        self._marker = self._one_token("marker", convention.marker)
        text = convention.template
        if text is None and not has_template(codec):
            text = "{prompt}{completion}"
        self._template = None if text is None else TextTemplate(text, codec)
        self._scorer: _LabelScorer | _WordScorer
        if convention.head == "tokens":
            assert convention.positive is not None
            assert convention.negative is not None
            good = self._one_token("positive", convention.positive)
            bad = self._one_token("negative", convention.negative)
            self._scorer = _WordScorer(load_model(config, AutoModelForCausalLM), good, bad)
        else:
            self._scorer = _LabelScorer(config, self.name)
        model: Any = self._scorer.model
        self._device = model.get_input_embeddings().weight.device
        self._scorer.check(self._pad([[self._marker] * 3]), self.name)
        self._sharing = self._find_sharing()
        limit = context_of(model, self._tokenizer, is_causal=True)
        self._reader = Reader(
            codec, name=self.name, max_tokens=limit, on_overflow=config.on_overflow
        )

    def about(self) -> dict[str, str]:
        """Return what it is, for people."""
        model: Any = self._scorer.model
        how = "its own chat template" if self._template is None else "a template"
        return {
            "class": f"{type(model).__name__}, {model.num_parameters():,} parameters",
            "placement": f"{model.device}, {model.dtype}",
            "context": f"{self._reader.max_tokens or 'unlimited'} tokens",
            "reads": f"text, through {how}, {self._convention.marker!r} after each step",
        }

    def steps(self, item: RewardInput) -> list[str]:
        """Return the steps of an answer that are scored."""
        separator = self._convention.step_separator
        assert separator is not None
        steps = item.text.split(separator)
        if not item.finished and not self._config.score_unfinished:
            steps = steps[:-1]
        return [step for step in steps if step.strip()]

    def step_scores(self, inputs: Sequence[RewardInput]) -> list[list[float]]:
        """Return the probability of each step; of the prompt, where there is no step yet."""
        return [scores for scores, _ in self._score_steps(inputs)]

    def score(self, inputs: Sequence[RewardInput]) -> list[Score]:
        """See `RewardModel`."""
        aggregate = _AGGREGATES[self._config.aggregate]
        return [
            with_floor(
                aggregate(steps),
                self._config.floor,
                num_tokens=len(row.ids),
                truncated=row.truncated,
            )
            for steps, row in self._score_steps(inputs)
        ]

    @torch.inference_mode()
    def _score_steps(self, inputs: Sequence[RewardInput]) -> list[tuple[list[float], Row]]:
        rows = [self._read(item) for item in inputs]
        scores = in_batches(
            rows,
            [len(row.ids) for row in rows],
            self._config.batch_size,
            self._run,
            self._sharing,
        )
        return list(zip(scores, rows, strict=True))

    # --- reading ---

    def _read(self, item: RewardInput) -> Row:
        steps = self.steps(item)
        return self._reader.fit(item.prompt, lambda prompt: self._encode(prompt, steps))

    def _encode(self, prompt: RewardPrompt, steps: Sequence[str]) -> Row:
        """Encode each step apart, so that markers are where they are, whatever the text holds."""
        first, *others = steps or [""]
        ids = [*self._encode_beginning(prompt, first), self._marker]
        marks = [len(ids) - 1]
        between = self._convention.after_marker or ""
        for step in others:
            ids += [*self._codec.encode_continuation(between + step), self._marker]
            marks.append(len(ids) - 1)
        return Row(ids, tuple(marks))

    def _encode_beginning(self, prompt: RewardPrompt, step: str) -> list[int]:
        if self._template is not None:
            return self._template.encode(prompt.text, step, with_rest=False)
        head, _ = frame(self._codec, self._reader.conversation(prompt))
        shown = defuse(step.replace(head.mark, ""), self._codec.control_tokens, head.mark)
        return encode_rendered(self._codec, Rendered(head.text + shown, head.mark))

    def _one_token(self, field: str, text: str) -> int:
        """Return the id of a control token, or of text that is one token after other text."""
        if text in self._codec.control_tokens:
            token: int = self._tokenizer.convert_tokens_to_ids(text)
            return token
        for ids in (self._codec.encode_continuation(text), self._codec.encode(text)):
            if len(ids) == 1:
                return ids[0]
        raise ModelLoadError(
            f"{field}={text!r} is not one token of {self.name}, but "
            f"{len(self._codec.encode_continuation(text))}. Cure: the {field} that the model was "
            "trained with, or the convention of its family"
        )

    # --- the forward pass ---

    def _pad(self, rows: Sequence[Sequence[int]]) -> Batch:
        return pad(rows, self._tokenizer.pad_token_id or 0, self._device)

    def _run(self, rows: Sequence[Row]) -> list[list[float]]:
        batch = self._pad([row.ids for row in rows])
        logits = self._scorer.logits(batch, [row.marks for row in rows])
        return [read_label(each, self._scorer.label, "probability").tolist() for each in logits]

    @torch.inference_mode()
    def _find_sharing(self) -> Sharing:
        def run(rows: Sequence[Sequence[int]]) -> torch.Tensor:
            return torch.cat(self._scorer.logits(self._pad(rows), [(len(r) - 1,) for r in rows]))

        short, long = ([*self._codec.encode_prompt(text), self._marker] for text in PROBES)
        dtype = self._scorer.model.dtype
        return find_sharing(run, short, long, name=self.name, dtype=dtype)


class _LabelScorer:
    """Reads the labels of a head on each token."""

    def __init__(self, config: ProcessReward, name: str) -> None:
        self._head = load_token_head(config)
        self._given = config.resolved().label
        self._name = name
        self.label = 0
        self.model = self._head.model

    @torch.inference_mode()
    def check(self, batch: Batch, name: str) -> None:
        """Check on a probe that there are labels for each token, and that the wanted one is.

        Raises:
            ModelLoadError: There are not.
        """
        try:
            logits = self._head.logits(batch)
        except Exception as error:
            raise _no_head(name, error) from error
        if logits.ndim != 3 or logits.shape[:2] != batch.input_ids.shape:
            raise _no_head(name, f"it returns {tuple(logits.shape)} for {batch.input_ids.shape}")
        known = names_of(self.model.config)
        names = {index: known.get(index, str(index)) for index in range(logits.shape[-1])}
        self.label = pick_label(names, self._given, name)

    def logits(self, batch: Batch, marks: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Return (marks, labels) of each row."""
        logits = self._head.logits(batch)
        return [logits[index, list(places)] for index, places in enumerate(marks)]


class _WordScorer:
    """Reads two next tokens, the good one and the bad one, as if they were the only labels."""

    def __init__(self, model: Any, good: int, bad: int) -> None:
        self.label = 0
        self.model = model
        self._words = [good, bad]
        self._can_choose = "logits_to_keep" in inspect.signature(model.forward).parameters

    def check(self, batch: Batch, name: str) -> None:
        """See `_LabelScorer`.

        Raises:
            ModelLoadError: The two words begin with the same token.
        """
        if self._words[0] == self._words[1]:
            raise ModelLoadError(
                f"positive and negative are the same token of {name}. Cure: two others"
            )

    def logits(self, batch: Batch, marks: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """See `_LabelScorer`."""
        positions = sorted({place for places in marks for place in places})
        logits = last_logits(self.model, batch, positions, can_choose=self._can_choose)
        logits = logits[..., self._words]  # (rows, positions, 2)
        at = {place: index for index, place in enumerate(positions)}
        return [logits[index, [at[p] for p in places]] for index, places in enumerate(marks)]


def _no_head(name: str, found: object) -> ModelLoadError:
    return ModelLoadError(
        f"{name} gives no labels for each token ({found}). Cure: a process reward model with such "
        "a head, or head='tokens' for one that answers by next tokens"
    )
