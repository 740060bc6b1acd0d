"""Cut prompts that are longer than what a reward model reads; the cut prompts are kept.

A prompt is read again with each candidate. So its end is found once, and what is before the end is
neither copied nor tokenized again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from stars_engine.messages import Message
from stars_engine.rewards.prompt_memo import PromptMemo
from stars_engine.tokenization.codec import Codec
from stars_engine.tokenization.token_bytes import REPLACEMENT
from stars_engine.types import RewardPrompt


class PromptCutter:
    """Cuts prompts on the left. The result depends on nothing but the prompt and the amount.

    Args:
        codec: The reward model's tokenizer.
        max_tokens: Its context length.
    """

    def __init__(self, codec: Codec, max_tokens: int) -> None:
        self._codec, self._max_tokens = codec, max_tokens
        self._kept: PromptMemo[RewardPrompt] = PromptMemo()

    def last_tokens(self, prompt: RewardPrompt) -> RewardPrompt:
        """Return the prompt with about as many tokens as the model reads, or itself if shorter."""
        ids, messages = prompt.token_ids or (), prompt.messages or ()
        num_chars = max(len(prompt.text), sum(len(message.content) for message in messages))
        if num_chars <= self._max_tokens and len(ids) <= self._max_tokens:
            return prompt
        return self._keep(prompt, -1, self._last_tokens)

    def cut_left(self, prompt: RewardPrompt, count: int) -> RewardPrompt:
        """Remove the first tokens from each form of a prompt; the result is always shorter."""
        return self._keep(prompt, count, lambda each: cut_left(each, count, self._codec))

    def _keep(
        self, prompt: RewardPrompt, count: int, cut: Callable[[RewardPrompt], RewardPrompt]
    ) -> RewardPrompt:
        found = self._kept.get(prompt, count)
        if found is None:
            found = cut(prompt)
            self._kept.set(prompt, found, count)
        return found

    def _last_tokens(self, prompt: RewardPrompt) -> RewardPrompt:
        text, ids, messages = prompt.text, prompt.token_ids, prompt.messages
        cut = RewardPrompt(
            self._end_of(text, self._max_tokens)[0],
            None
            if ids is None
            else _cut_ids(ids, max(0, len(ids) - self._max_tokens), self._codec),
            None if messages is None else self._last_messages(messages),
        )
        return prompt if cut == prompt else cut

    def _last_messages(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """Keep the last messages that the model can read; the first of them may be cut."""
        kept: list[Message] = []
        room = self._max_tokens
        for message in reversed(messages):
            content, num_tokens = self._end_of(message.content, room)
            is_whole = content == message.content
            kept.append(message if is_whole else Message(role=message.role, content=content))
            room -= num_tokens
            if not is_whole or room <= 0:
                break
        while len(kept) > 1 and kept[-1].role == "assistant" and len(kept) < len(messages):
            kept.pop()  # a conversation never begins with the assistant
        return tuple(reversed(kept))

    def _end_of(self, text: str, num_tokens: int) -> tuple[str, int]:
        """Return the last tokens of a text, and their number."""
        if num_tokens <= 0:
            return "", 0
        size = num_tokens * self._longest_token
        while True:
            end = text[-size:]
            ids = self._codec.encode(end)
            if len(ids) > num_tokens:
                return _without(ids, len(ids) - num_tokens, end, self._codec), num_tokens
            if size >= len(text):
                return end, len(ids)
            size *= 2  # some tokenizers drop characters, such as spaces

    @cached_property
    def _longest_token(self) -> int:
        """Maximum number of characters of a token."""
        vocabulary: dict[str, Any] = self._codec.tokenizer.get_vocab()
        return max(map(len, vocabulary), default=1)


def can_be_cut(prompt: RewardPrompt) -> bool:
    """Whether any form of a prompt is not yet empty."""
    messages = prompt.messages or ()
    return bool(prompt.text or prompt.token_ids or messages[1:] or any(m.content for m in messages))


def cut_left(prompt: RewardPrompt, count: int, codec: Codec) -> RewardPrompt:
    """Remove the first tokens from each form of a prompt; the result is always shorter."""
    ids, messages = prompt.token_ids, prompt.messages
    return RewardPrompt(
        _cut_text(prompt.text, count, codec),
        None if ids is None else _cut_ids(ids, count, codec),
        None if messages is None else _cut_messages(messages, count, codec),
    )


def _cut_text(text: str, count: int, codec: Codec) -> str:
    return _without(codec.encode(text), count, text, codec)


def _without(ids: Sequence[int], count: int, text: str, codec: Codec) -> str:
    """Return the text of ids without the first ones; it is shorter than their whole text."""
    for start in range(count, len(ids)):
        rest = codec.decode(ids[start:]).lstrip(REPLACEMENT)
        if len(rest) < len(text):  # decoding a part of a word may yield more characters
            return rest
    return ""


def _cut_ids(ids: Sequence[int], count: int, codec: Codec) -> tuple[int, ...]:
    """Keep the tokenizer's prefix tokens as long as other tokens follow them."""
    prefix = tuple(codec.encode_prompt(""))
    size = len(prefix) if len(ids) > len(prefix) and tuple(ids[: len(prefix)]) == prefix else 0
    return (*ids[:size], *ids[size + count :])


def _cut_messages(messages: Sequence[Message], count: int, codec: Codec) -> tuple[Message, ...]:
    """Truncate or drop the first message; a conversation never begins with the assistant."""
    first, *others = messages
    if not others or len(codec.encode(first.content)) > count:
        return (Message(role=first.role, content=_cut_text(first.content, count, codec)), *others)
    while len(others) > 1 and others[0].role == "assistant":
        del others[0]
    return tuple(others)
