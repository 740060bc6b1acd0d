"""Encode prompt and answer for a reward model: with its template, within its context."""

from __future__ import annotations

import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from stars_engine.chat.answers import acceptable
from stars_engine.config.rewards.common import ReadsText
from stars_engine.errors import RewardError, StarsWarning
from stars_engine.loading.context import context_len
from stars_engine.messages import Message
from stars_engine.rewards.base import with_floor
from stars_engine.rewards.prompt_cutting import PromptCutter, can_be_cut
from stars_engine.tokenization.codec import Codec
from stars_engine.types import RewardPrompt, Score

_PLACES = re.compile(r"(\{bos\}|\{prompt\}|\{completion\})")
_MAX_REMEMBERED = 256  # merged conversations


@dataclass(frozen=True, slots=True)
class EncodedInput:
    """A prompt and an answer as the reward model's tokens.

    Attributes:
        ids: Token ids, at least one.
        marks: Positions at which scores are read, ascending, ending at the last token; empty if
            only the last token is read.
        truncated: Whether the prompt was truncated.
    """

    ids: list[int]
    marks: tuple[int, ...] = ()
    truncated: bool = False

    @property
    def points(self) -> tuple[int, ...]:
        """Positions at which scores are read, at least one."""
        return self.marks or (len(self.ids) - 1,)

    def score(self, value: float, floor: float | None) -> Score:
        """Return the score of this input, vetoed if its value is below the floor."""
        return with_floor(value, floor, num_tokens=len(self.ids), truncated=self.truncated)


class TextTemplate:
    """A template string with {prompt}, {completion} and {bos} in it.

    Args:
        text: The string, as the config checked it.
        codec: The tokenizer; {bos} is its begin-of-text token, or nothing.
    """

    def __init__(self, text: str, codec: Codec) -> None:
        self._codec = codec
        bos = codec.tokenizer.bos_token or ""
        self._parts = [part.replace("{bos}", bos) for part in _PLACES.split(text)]
        self._has_bos = text.startswith("{bos}")

    def encode(self, prompt: str, completion: str, *, with_rest: bool) -> list[int]:
        """Encode the template with prompt and completion filled in.

        The tokenizer's prefix tokens come first, unless the template begins with {bos}.

        Args:
            prompt: The text of the prompt.
            completion: The text of the answer.
            with_rest: Whether to include the part of the template after the completion.
        """
        pieces: list[tuple[str, bool]] = []
        for part in self._parts:
            if part == "{completion}":
                pieces.append((completion, False))
                if not with_rest:
                    break
            else:
                pieces.append((prompt, False) if part == "{prompt}" else (part, True))
        ids = self._codec.encode_pieces(pieces)
        prefix = [] if self._has_bos else self._codec.encode_prompt("")
        return ids if ids[: len(prefix)] == prefix else [*prefix, *ids]


class InputReader(ABC):
    """Encodes prompts and answers for a reward model: conversations, context, warnings.

    Args:
        config: How they are read.
        codec: The reward model's tokenizer.
        name: The name of the reward, for messages.
        max_tokens: The context length; None for no limit.
    """

    def __init__(
        self, config: ReadsText, codec: Codec, *, name: str, max_tokens: int | None
    ) -> None:
        self.max_tokens = max_tokens
        self._codec = codec
        self._cutter = None if max_tokens is None else PromptCutter(codec, max_tokens)
        self._template_kwargs = config.chat_template_kwargs
        self._name = name
        self._truncates = config.on_overflow == "truncate"
        self._warned: set[str] = set()
        self._conversations: dict[tuple[Message, ...], tuple[Message, ...]] = {}

    @property
    @abstractmethod
    def about(self) -> str:
        """A readable description."""

    def conversation(self, prompt: RewardPrompt) -> tuple[Message, ...]:
        """Return a prompt as a conversation that the chat template accepts.

        A prompt that is not a conversation becomes one user message.
        """
        given = prompt.messages or (Message(role="user", content=prompt.text),)
        if given not in self._conversations:
            if len(self._conversations) >= _MAX_REMEMBERED:
                self._conversations.clear()
            self._conversations[given] = acceptable(
                self._codec, given, template_kwargs=self._template_kwargs
            )
        taken = self._conversations[given]
        if taken != given:
            self._warn_once(
                "roles",
                f"The chat template of {self._name} rejects the roles "
                f"{', '.join(m.role for m in given)}; their contents are merged into user "
                "messages. Hint: give a reward_prompt with roles that it accepts, or use another "
                "reward model",
            )
        return taken

    def fit(
        self, prompt: RewardPrompt, encode: Callable[[RewardPrompt], EncodedInput]
    ) -> EncodedInput:
        """Encode prompt and answer; truncate the prompt on the left if they are too long.

        Args:
            prompt: The prompt.
            encode: Encodes the prompt together with the answer.

        Raises:
            RewardError: The input is too long, and truncation is not allowed or does not suffice.
        """
        limit, given = self.max_tokens, prompt
        if self._cutter is not None:
            prompt = self._cutter.last_tokens(prompt)
        row = encode(prompt)
        if limit is None or (prompt is given and len(row.ids) <= limit):
            return row
        if not self._truncates:
            raise RewardError(
                f"prompt and answer have {len(row.ids)} tokens or more, and {self._name} reads at "
                f"most {limit}. Hint: set on_overflow='truncate' to truncate the prompt, or use a "
                "shorter reward_prompt or a smaller max_tokens"
            )
        self._warn_once(
            "context",
            f"{self._name} reads at most {limit} tokens; longer prompts are truncated on the left "
            "(see usage.num_truncated_rewards). Hint: use a reward model with a longer context, or "
            "a shorter reward_prompt",
        )
        while len(row.ids) > limit:
            assert self._cutter is not None
            if not can_be_cut(prompt):
                raise RewardError(
                    f"the answer alone is longer than the {limit} tokens that {self._name} reads. "
                    f"Hint: set max_tokens below {limit}, or use a reward model with a longer "
                    "context"
                )
            prompt = self._cutter.cut_left(prompt, len(row.ids) - limit)
            row = encode(prompt)
        return replace(row, truncated=True)

    def _warn_once(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(message, StarsWarning, stacklevel=2)


def context_of(model: Any, tokenizer: Any, *, is_causal: bool) -> int | None:
    """Return the context length of a reward model, or None if it has no limit."""
    limit = context_len(model.config, tokenizer)
    if is_causal:
        return limit
    # RoBERTa-like models reserve the first position embeddings, up to the padding token's id, and
    # `max_position_embeddings` includes them.
    limits = [limit, getattr(tokenizer, "model_max_length", None)]
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            offset = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - offset)
    # A tokenizer without a limit reports 10**30.
    return min((n for n in limits if n is not None and n < 10**9), default=None)
