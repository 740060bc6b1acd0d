"""A causal language model as judge: how much more likely one answer is than another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import AutoModelForCausalLM

from stars_engine.chat.template import Rendered, encode_rendered, has_template, render
from stars_engine.config import YesNoReward
from stars_engine.errors import ModelLoadError
from stars_engine.loading.models import load_model, load_tokenizer
from stars_engine.messages import Message
from stars_engine.rewards.base import with_floor
from stars_engine.rewards.batch_invariance import PROBES, Sharing, find_sharing
from stars_engine.rewards.batching import run_whole
from stars_engine.rewards.encoding import EncodedInput, InputEncoder, TextTemplate, context_of
from stars_engine.rewards.failures import FailurePolicy
from stars_engine.rewards.label_tokens import NextTokenLogits
from stars_engine.rewards.self_check import CachesPrefixes, run_rows, select_runner
from stars_engine.tokenization.codec import Codec
from stars_engine.types import RewardInput, RewardPrompt, Score


class YesNoRewardModel(CachesPrefixes):
    """log p(positive) - log p(negative) for the token that follows the judge's prompt.

    Args:
        config: What to load, or the live objects.
    """

    def __init__(self, config: YesNoReward) -> None:
        self._tokenizer = load_tokenizer(config)
        self._codec = codec = Codec(self._tokenizer)
        self._config = config
        self._judging = judging = config.resolved()
        self.failures = FailurePolicy.of(config)
        self.name = config.name_or_path or type(config.model).__name__
        self._template = None
        if judging.template is not None:
            self._template = TextTemplate(self._with_policy(judging.template), codec)
        elif not has_template(codec):
            raise ModelLoadError(
                f"{self.name} has no chat template. Hint: give the judge's whole input as "
                "template='...{prompt}...{completion}...'"
            )
        words = [
            self._first_token("positive", judging.positive),
            self._first_token("negative", judging.negative),
        ]
        if words[0] == words[1]:
            raise ModelLoadError(
                f"positive={judging.positive!r} and negative={judging.negative!r} begin with the "
                f"same token of {self.name}. Hint: choose two answers whose first tokens differ"
            )
        self._model = model = load_model(config, AutoModelForCausalLM)
        self._device = model.get_input_embeddings().weight.device
        self._call = NextTokenLogits(model, words)
        self._sharing = self._find_sharing()
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
        )

    def about(self) -> dict[str, str]:
        """Return a readable description."""
        judging, model = self._judging, self._model
        how = "its own chat template" if self._template is None else "a template"
        return {
            "class": f"{type(model).__name__}, {model.num_parameters():,} parameters",
            "placement": f"{model.device}, {model.dtype}",
            "context": f"{self._encoder.max_tokens or 'unlimited'} tokens",
            "reads": f"text, through {how}; {judging.positive!r} against {judging.negative!r}",
            "path": self.path,
        }

    @torch.inference_mode()
    def score(self, inputs: Sequence[RewardInput]) -> list[Score]:
        """See `RewardModel`."""
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
        return [
            with_floor(value, self._config.floor, num_tokens=len(row.ids), truncated=row.truncated)
            for value, row in zip(self._values(torch.cat(outputs)), rows, strict=True)
        ]

    # --- reading ---

    def _read(self, item: RewardInput) -> EncodedInput:
        return self._encoder.fit(
            item.prompt, lambda prompt: EncodedInput(self._encode(prompt, item.text))
        )

    def _encode(self, prompt: RewardPrompt, completion: str) -> list[int]:
        if self._template is not None:
            ids = self._template.encode(prompt.text, completion, with_rest=True)
            shown = self._judging.template or ""
        else:
            rendered = self._ask(prompt, completion)
            ids, shown = encode_rendered(self._codec, rendered), rendered.text
        prefix = self._judging.answer_prefix
        if prefix and not shown.endswith(prefix):
            ids = [*ids, *self._codec.encode_continuation(prefix, parse=True)]
        return ids

    def _ask(self, prompt: RewardPrompt, completion: str) -> Rendered:
        """Render the instruction as a user message; without one, the conversation and answer."""
        instruction = self._judging.instruction
        if instruction is None:
            turns = self._encoder.conversation(prompt)
            turns = (*turns, Message(role="assistant", content=completion))
        else:
            # In this order, because the inserted text may itself contain a placeholder.
            before, _, after = self._with_policy(instruction).partition("{completion}")
            content = before.replace("{prompt}", prompt.text) + completion + after
            turns = (Message(role="user", content=content),)
        return render(
            self._codec,
            turns,
            add_generation_prompt=True,
            template_kwargs=self._config.chat_template_kwargs,
        )

    def _with_policy(self, text: str) -> str:
        return text.replace("{policy}", self._judging.policy or "")

    def _first_token(self, field: str, word: str) -> int:
        ids = self._codec.encode_continuation(word, parse=True)
        if not ids:
            raise ModelLoadError(
                f"{field}={word!r} encodes to no tokens of {self.name}. Hint: use another word"
            )
        return ids[0]

    # --- the forward pass ---

    def _values(self, logits: torch.Tensor) -> list[float]:
        logits = logits.double()
        values: list[float] = (logits[:, 0] - logits[:, 1]).tolist()
        return values

    def _logits(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return (rows, 2): the logits of the positive and the negative word after each row."""
        return torch.cat(self._run_whole([EncodedInput(list(row)) for row in rows]))

    def _run_whole(self, rows: Sequence[EncodedInput]) -> list[torch.Tensor]:
        """Return (1, 2) of each row."""
        return run_whole(self._call, rows, self._tokenizer.pad_token_id or 0, self._device)

    @torch.inference_mode()
    def _find_sharing(self) -> Sharing:
        short, long = (self._codec.encode_prompt(text) for text in PROBES)
        return find_sharing(self._logits, short, long, name=self.name, dtype=self._model.dtype)
