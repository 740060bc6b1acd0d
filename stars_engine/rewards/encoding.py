"""How reward models encode a prompt and an answer: with their template, within their context."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from stars_engine.chat.answers import acceptable
from stars_engine.errors import RewardError, StarsWarning
from stars_engine.loading import context_len
from stars_engine.messages import Message
from stars_engine.tokenization.codec import Codec
from stars_engine.tokenization.token_bytes import REPLACEMENT
from stars_engine.types import RewardPrompt

_PLACES = re.compile(r"(\{bos\}|\{prompt\}|\{completion\})")
_MAX_REMEMBERED = 256  # conversations and how they are merged


@dataclass(frozen=True, slots=True)
class EncodedInput:
    """A prompt and an answer as the reward model's tokens.

    Attributes:
        ids: Token ids, at least one.
        marks: Positions at which scores are read, ascending, the last one at the end; empty if
            that is the only one.
        truncated: Whether the prompt was cut.
    """

    ids: list[int]
    marks: tuple[int, ...] = ()
    truncated: bool = False

    @property
    def points(self) -> tuple[int, ...]:
        """Positions at which scores are read, at least one."""
        return self.marks or (len(self.ids) - 1,)


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
        """Encode the template with prompt and completion in their places.

        Tokens that the tokenizer puts before a text come first, unless {bos} says where.

        Args:
            prompt: The prompt's text.
            completion: The answer's.
            with_rest: Whether what follows the completion is part of it.
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


class InputEncoder:
    """What the encodings of all model rewards share: conversations, the context, warnings.

    Args:
        codec: The reward model's tokenizer.
        name: Of the reward, in messages.
        max_tokens: The context; None for no limit.
        on_overflow: "truncate" or "raise".
        template_kwargs: Variables of its chat template.
    """

    def __init__(
        self,
        codec: Codec,
        *,
        name: str,
        max_tokens: int | None,
        on_overflow: str,
        template_kwargs: Mapping[str, Any],
    ) -> None:
        self.codec = codec
        self.max_tokens = max_tokens
        self._template_kwargs = template_kwargs
        self._name = name
        self._truncates = on_overflow == "truncate"
        self._warned: set[str] = set()
        self._conversations: dict[tuple[Message, ...], tuple[Message, ...]] = {}

    def conversation(self, prompt: RewardPrompt) -> tuple[Message, ...]:
        """Return a prompt as a conversation that the chat template takes.

        A prompt that is none becomes one user turn.
        """
        given = prompt.messages or (Message(role="user", content=prompt.text),)
        if given not in self._conversations:
            if len(self._conversations) >= _MAX_REMEMBERED:
                self._conversations.clear()
            self._conversations[given] = acceptable(
                self.codec, given, template_kwargs=self._template_kwargs
            )
        taken = self._conversations[given]
        if taken != given:
            self._warn_once(
                "roles",
                f"the chat template of {self._name} rejects {', '.join(m.role for m in given)}; "
                "their contents are merged into user turns. Hint: a reward_prompt in roles it "
                "takes, or a reward model that knows them",
            )
        return taken

    def fit(
        self, prompt: RewardPrompt, encode: Callable[[RewardPrompt], EncodedInput]
    ) -> EncodedInput:
        """Encode prompt and answer, and cut the prompt from the left as far as it is too long.

        Args:
            prompt: The prompt.
            encode: Encodes it together with the answer.

        Raises:
            RewardError: It is too long, and cutting is not allowed or not enough.
        """
        row = encode(prompt)
        limit = self.max_tokens
        if limit is None or len(row.ids) <= limit:
            return row
        if not self._truncates:
            raise RewardError(
                f"{self._name} reads {limit} tokens at most; prompt and answer have "
                f"{len(row.ids)}. Hint: on_overflow='truncate' cuts the prompt; or a shorter "
                "reward_prompt, or a smaller max_tokens"
            )
        self._warn_once(
            "context",
            f"{self._name} reads {limit} tokens at most; the beginning of longer prompts is cut "
            "off (usage.num_truncated_rewards counts them). Hint: a reward model with a longer "
            "context, or a shorter reward_prompt",
        )
        while len(row.ids) > limit:
            if not _can_be_cut(prompt):
                raise RewardError(
                    f"{self._name} reads {limit} tokens at most, and the answer alone has more. "
                    f"Hint: max_tokens below {limit}, or a reward model with a longer context"
                )
            prompt = _cut_left(prompt, len(row.ids) - limit, self.codec)
            row = encode(prompt)
        return replace(row, truncated=True)

    def _warn_once(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(message, StarsWarning, stacklevel=2)


def context_of(model: Any, tokenizer: Any, *, is_causal: bool) -> int | None:
    """Return how many tokens a reward model reads, or None if it has no limit."""
    limit = context_len(model.config, tokenizer)
    if is_causal:
        return limit
    # `max_position_embeddings` of RoBERTa and its kin counts the rows before the first position:
    # up to the padding's, which is the padding token's id.
    limits = [limit, getattr(tokenizer, "model_max_length", None)]
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            offset = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - offset)
    # A tokenizer without a limit says 10**30.
    return min((n for n in limits if n is not None and n < 10**9), default=None)


def _can_be_cut(prompt: RewardPrompt) -> bool:
    """Whether there is anything left of a prompt, in any of its forms."""
    messages = prompt.messages or ()
    return bool(prompt.text or prompt.token_ids or messages[1:] or any(m.content for m in messages))


def _cut_left(prompt: RewardPrompt, count: int, codec: Codec) -> RewardPrompt:
    """Return a prompt without its first tokens, in each of its forms; always a shorter one."""
    ids, messages = prompt.token_ids, prompt.messages
    return RewardPrompt(
        _cut_text(prompt.text, count, codec),
        None if ids is None else _cut_ids(ids, count, codec),
        None if messages is None else _cut_messages(messages, count, codec),
    )


def _cut_text(text: str, count: int, codec: Codec) -> str:
    ids = codec.encode(text)
    for start in range(count, len(ids)):
        rest = codec.decode(ids[start:]).lstrip(REPLACEMENT)
        if len(rest) < len(text):  # a piece within a word may be written longer than it was
            return rest
    return ""


def _cut_ids(ids: Sequence[int], count: int, codec: Codec) -> tuple[int, ...]:
    """Keep what begins every text, as long as there is something after it."""
    prefix = tuple(codec.encode_prompt(""))
    size = len(prefix) if len(ids) > len(prefix) and tuple(ids[: len(prefix)]) == prefix else 0
    return (*ids[:size], *ids[size + count :])


def _cut_messages(messages: Sequence[Message], count: int, codec: Codec) -> tuple[Message, ...]:
    """Cut the first turn, or drop it whole; a conversation does not begin with an assistant's."""
    first, *others = messages
    if not others or len(codec.encode(first.content)) > count:
        return (Message(role=first.role, content=_cut_text(first.content, count, codec)), *others)
    while len(others) > 1 and others[0].role == "assistant":
        del others[0]
    return tuple(others)
