"""Convert a caller's prompt to token ids and a `RewardPrompt`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal
from weakref import WeakKeyDictionary

from stars_engine.chat.conversations import ResolvedPrompt, read_conversation, transcript
from stars_engine.chat.formats import GENERIC
from stars_engine.chat.template import NO_KWARGS, TemplateKwargs, has_template
from stars_engine.chat.turns import texts_of, turns_of, with_calls_as_text
from stars_engine.errors import PromptError
from stars_engine.messages import Chat, Message
from stars_engine.tokenization.added_tokens import template_sources
from stars_engine.tokenization.codec import Codec
from stars_engine.types import Prompt, RenderedPrompt, RewardPrompt, TokenIds

logger = logging.getLogger(__name__)

PromptFormat = Literal["auto", "chat", "raw", "rendered"]
_MIN_PIECE_LEN = 5  # `<s>` and `</s>` are also HTML
_announced: WeakKeyDictionary[Codec, bool] = WeakKeyDictionary()


def resolve_prompt(
    prompt: Prompt,
    codec: Codec,
    *,
    prompt_format: PromptFormat = "auto",
    template_kwargs: TemplateKwargs = NO_KWARGS,
    reward_prompt: str | Chat | None = None,
) -> ResolvedPrompt:
    """Encode a prompt of any form.

    Args:
        prompt: A string, `Chat`, `TokenIds` or `RenderedPrompt`.
        codec: The language model's tokenizer.
        prompt_format: How to read a string: as a user message ("chat"), as raw text ("raw"), as
            what a chat template has written ("rendered"), or as a user message if the model has a
            chat template ("auto").
        template_kwargs: Variables for the chat template; those of a `Chat` take precedence.
        reward_prompt: Replaces the prompt for the reward model.

    Raises:
        PromptError: The prompt has another type, or is empty and the model needs a token.
    """
    if isinstance(prompt, str) and prompt_format == "rendered":
        prompt = RenderedPrompt(prompt, add_special_tokens=True)
    if isinstance(prompt, str):
        _announce_pieces(prompt, codec)
    if isinstance(prompt, str) and is_turn(prompt_format, codec):
        _check_text(prompt, "the prompt")
        prompt = Chat([Message(role="user", content=prompt)])
    if isinstance(prompt, Chat):
        _check_messages(prompt.messages)
        if len(prompt.messages) == 1:  # chat models of frameworks turn a string into a message
            _announce_pieces(prompt.messages[0].content, codec)
        for tool in prompt.tools:
            for text in texts_of(tool.described()):
                _check_text(text, f"the tool {tool.name}")
        resolved = read_conversation(prompt, codec, template_kwargs)
    else:
        resolved = ResolvedPrompt(*_encode(prompt, codec))
    if not resolved.token_ids:
        raise PromptError(
            "the prompt is empty, and this model has no begin-of-text token to start from. Hint: "
            "give a prompt of at least one character"
        )
    if reward_prompt is None:
        return resolved
    return replace(resolved, for_reward=_replacement(reward_prompt, codec))


def as_prompt_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Return one prompt, or a sequence of them, as a list.

    Raises:
        PromptError: A bare list of role dicts or of token ids, which is ambiguous.
    """
    if isinstance(prompts, str | Chat | TokenIds | RenderedPrompt):
        return [prompts]
    if not isinstance(prompts, Sequence) or (prompts and isinstance(prompts[0], dict | int)):
        raise PromptError(_wrong_type(prompts))
    return list(prompts)


def is_turn(prompt_format: PromptFormat, codec: Codec) -> bool:
    """Whether a string is a user message rather than text to continue."""
    return prompt_format == "chat" or (prompt_format == "auto" and has_template(codec))


def _announce_pieces(text: str, codec: Codec) -> None:
    """Warn once if text contains control tokens of the model's template, which stay text."""
    if codec in _announced or not has_template(codec):
        return
    template = "\n".join(template_sources(codec.tokenizer))
    found = next(
        (
            token
            for token in codec.control_tokens
            if len(token) >= _MIN_PIECE_LEN and token in text and token in template
        ),
        None,
    )
    if found is not None:
        _announced[codec] = True
        logger.warning(
            "The prompt contains %r, a control token of the model's chat template. It is read as "
            "text, because untrusted text must not contain control tokens. Hint: if a chat "
            "template wrote this prompt, give it as a string, not as a message, with "
            "RenderedPrompt(text) or prompt_format='rendered'; otherwise give the messages, which "
            "the template renders",
            found,
        )


def _encode(prompt: Prompt, codec: Codec) -> tuple[tuple[int, ...], RewardPrompt]:
    match prompt:
        case str():
            _check_text(prompt, "the prompt")
            ids = codec.encode_prompt(prompt) or codec.empty_prompt()
            return tuple(ids), RewardPrompt(prompt, tuple(ids))
        case RenderedPrompt():
            _check_text(prompt.text, "the rendered prompt")
            _check_messages(prompt.messages or ())
            ids = codec.encode_rendered(prompt.text, add_prefix=prompt.add_special_tokens)
            ids = ids or codec.empty_prompt()
            if prompt.messages is not None:
                shown = with_calls_as_text(prompt.messages, GENERIC, codec.reserved_tokens)
                seen = RewardPrompt(transcript(shown), tuple(ids), shown)
            else:
                seen = RewardPrompt(codec.decode(ids), tuple(ids))
            return tuple(ids), seen
        case TokenIds():
            ids = list(prompt.ids) or codec.empty_prompt()
            return tuple(ids), RewardPrompt(codec.decode(ids), tuple(ids))
    raise PromptError(_wrong_type(prompt))


def _replacement(prompt: str | Chat, codec: Codec) -> RewardPrompt:
    match prompt:
        case str():
            _check_text(prompt, "reward_prompt")
            return RewardPrompt(prompt)
        case Chat():
            if ignored := prompt.model_fields_set - {"messages"}:
                raise PromptError(
                    f"reward_prompt is a Chat with {', '.join(sorted(ignored))}, which reward "
                    "models do not use. Hint: give Chat(messages)"
                )
            _check_messages(prompt.messages)
            shown = with_calls_as_text(prompt.messages, GENERIC, codec.reserved_tokens)
            return RewardPrompt(transcript(shown), messages=shown)
    raise PromptError(
        f"reward_prompt is {type(prompt).__name__}; expected a str, a Chat or None. Hint: give a "
        "string, or Chat([...])"
    )


def _check_messages(messages: Sequence[Message]) -> None:
    for index, message in enumerate(messages):
        for text in texts_of(turns_of([message])):
            _check_text(text, f"the content of message {index}")


def _check_text(text: str, what: str) -> None:
    """Refuse lone surrogates, which Python allows in strings and tokenizers cannot read."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"{what} contains a lone surrogate, {text[error.start]!r} at index {error.start}, "
            "which is not a character. Hint: use text.encode('utf-16', 'surrogatepass')"
            ".decode('utf-16', 'replace')"
        ) from None


def _wrong_type(prompt: object) -> str:
    if isinstance(prompt, dict) or (
        isinstance(prompt, list | tuple) and prompt and isinstance(prompt[0], dict)
    ):
        return (
            "a bare list of role dicts could be one conversation or many prompts. Hint: wrap each "
            "conversation, as in Chat([{'role': 'user', 'content': '...'}])"
        )
    if isinstance(prompt, list | tuple) and all(isinstance(part, int) for part in prompt):
        return "a bare list of numbers is not a prompt. Hint: use TokenIds([...]) for token ids"
    if isinstance(prompt, Iterable) and not isinstance(prompt, Sequence | dict):
        kind = type(prompt).__name__
        return f"prompts must be a list or another sequence, not {kind}. Hint: use list(...)"
    return (
        f"a prompt must be a str, Chat, TokenIds or RenderedPrompt, not {type(prompt).__name__}. "
        "Hint: convert it, or pass several prompts as one list"
    )
