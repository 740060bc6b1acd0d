"""A process reward model: scores each step of an answer and aggregates the scores."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from stars_engine.chat.answers import frame
from stars_engine.chat.template import Rendered, defuse, encode_rendered, has_template
from stars_engine.config import ProcessReward
from stars_engine.errors import ModelLoadError
from stars_engine.loading.models import load_model, load_tokenizer
from stars_engine.rewards.aggregation import aggregate, check_reads_forward
from stars_engine.rewards.base import with_floor
from stars_engine.rewards.batch_invariance import PROBES, Sharing, find_sharing
from stars_engine.rewards.batching import CallAt, run_whole
from stars_engine.rewards.encoding import EncodedInput, InputEncoder, TextTemplate, context_of
from stars_engine.rewards.failures import FailurePolicy
from stars_engine.rewards.label_tokens import NextTokenLogits
from stars_engine.rewards.labels import names_of, pick_label, read_label
from stars_engine.rewards.self_check import CachesPrefixes, run_rows, select_runner
from stars_engine.rewards.token_heads import load_token_head
from stars_engine.tokenization.codec import Codec
from stars_engine.types import RewardInput, RewardPrompt, Score


class ProcessRewardModel(CachesPrefixes):
    """Puts a marker after each step and reads there the probability that the step is good.

    An answer that has no step yet is scored at a marker after the prompt.

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
        self._call: CallAt
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
        self._sharing = self._find_sharing()
        if config.aggregate == "ema":
            probe = [*codec.encode_prompt(PROBES[1]), self._marker]
            check_reads_forward(
                self._run_whole, probe, name=self.name, how=config.aggregate, dtype=model.dtype
            )
        limit = context_of(model, self._tokenizer, is_causal=True)
        self._encoder = InputEncoder(
            codec,
            name=self.name,
            max_tokens=limit,
            on_overflow=config.on_overflow,
            template_kwargs=config.chat_template_kwargs,
        )
        self._incremental, self.path = select_runner(
            model,
            self._call,
            self._run_whole,
            context_len=limit,
            batch_size=config.batch_size,
            sharing=self._sharing,
            head=head,
        )

    def about(self) -> dict[str, str]:
        """Return a readable description."""
        model = self._model
        how = "its own chat template" if self._template is None else "a template"
        return {
            "class": f"{type(model).__name__}, {model.num_parameters():,} parameters",
            "placement": f"{model.device}, {model.dtype}",
            "context": f"{self._encoder.max_tokens or 'unlimited'} tokens",
            "reads": f"text, through {how}, {self._convention.marker!r} after each step",
            "path": self.path,
        }

    def steps(self, item: RewardInput) -> list[str]:
        """Return the steps of an answer that are to be scored."""
        separator = self._convention.step_separator
        assert separator is not None
        steps = item.text.split(separator)
        if not item.finished and not self._config.score_unfinished:
            steps = steps[:-1]
        return [step for step in steps if step.strip()]

    def step_scores(self, inputs: Sequence[RewardInput]) -> list[list[float]]:
        """Return the probability of each step; without a step, the one read after the prompt."""
        return [scores for scores, _ in self._score_steps(inputs)]

    def score(self, inputs: Sequence[RewardInput]) -> list[Score]:
        """See `RewardModel`."""
        config = self._config
        return [
            with_floor(
                aggregate(steps, config.aggregate, config.half_life),
                config.floor,
                num_tokens=len(row.ids),
                truncated=row.truncated,
            )
            for steps, row in self._score_steps(inputs)
        ]

    @torch.inference_mode()
    def _score_steps(self, inputs: Sequence[RewardInput]) -> list[tuple[list[float], EncodedInput]]:
        rows = [self._read(item) for item in inputs]
        if not rows:
            return []
        outputs = run_rows(
            self._incremental,
            rows,
            self._run_whole,
            batch_size=self._config.batch_size,
            sharing=self._sharing,
        )
        values = iter(read_label(torch.cat(outputs), self._label, "probability").tolist())
        return [(list(islice(values, len(row.points))), row) for row in rows]

    # --- reading ---

    def _read(self, item: RewardInput) -> EncodedInput:
        steps = self.steps(item)
        return self._encoder.fit(item.prompt, lambda prompt: self._encode(prompt, steps))

    def _encode(self, prompt: RewardPrompt, steps: Sequence[str]) -> EncodedInput:
        """Encode each step separately, so that the text of a step cannot move a marker."""
        first, *others = steps or [""]
        ids = [*self._encode_beginning(prompt, first), self._marker]
        marks = [len(ids) - 1]
        between = self._convention.after_marker or ""
        for step in others:
            ids += [*self._codec.encode_continuation(between + step), self._marker]
            marks.append(len(ids) - 1)
        return EncodedInput(ids, tuple(marks))

    def _encode_beginning(self, prompt: RewardPrompt, step: str) -> list[int]:
        if self._template is not None:
            return self._template.encode(prompt.text, step, with_rest=False)
        messages, kwargs = self._encoder.conversation(prompt), self._config.chat_template_kwargs
        head, _ = frame(self._codec, messages, template_kwargs=kwargs)
        shown = defuse(step.replace(head.mark, ""), self._codec.reserved_tokens, head.mark)
        return encode_rendered(self._codec, Rendered(head.text + shown, head.mark))

    def _two_words(self) -> list[int]:
        """Return the token ids of the positive and the negative word."""
        convention = self._convention
        assert convention.positive is not None
        assert convention.negative is not None
        good = self._one_token("positive", convention.positive)
        bad = self._one_token("negative", convention.negative)
        if good == bad:
            raise ModelLoadError(
                f"positive and negative are the same token of {self.name}. Hint: choose two words "
                "that differ"
            )
        return [good, bad]

    def _one_token(self, field: str, text: str) -> int:
        """Return the id of an added token, or of a text that encodes to one token."""
        if text in self._codec.reserved_tokens:
            token: int = self._tokenizer.convert_tokens_to_ids(text)
            return token
        for ids in (self._codec.encode_continuation(text), self._codec.encode(text)):
            if len(ids) == 1:
                return ids[0]
        raise ModelLoadError(
            f"{field}={text!r} is {len(self._codec.encode_continuation(text))} tokens of "
            f"{self.name}; it must be one. Hint: use the {field} that the model was trained with, "
            "or the convention of its family"
        )

    # --- the forward pass ---

    def _run_whole(self, rows: Sequence[EncodedInput]) -> list[torch.Tensor]:
        """Return (marks, labels) of each row."""
        return run_whole(self._call, rows, self._tokenizer.pad_token_id or 0, self._device)

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

    @torch.inference_mode()
    def _find_sharing(self) -> Sharing:
        def run(rows: Sequence[Sequence[int]]) -> torch.Tensor:
            return torch.cat(self._run_whole([EncodedInput(list(row)) for row in rows]))

        short, long = ([*self._codec.encode_prompt(text), self._marker] for text in PROBES)
        return find_sharing(run, short, long, name=self.name, dtype=self._model.dtype)


def _no_head(name: str, found: object) -> ModelLoadError:
    return ModelLoadError(
        f"{name} does not return labels for each token ({found}). Hint: use a process reward model "
        "with a token classification head, or head='tokens' for a model that predicts the label as "
        "its next token"
    )
