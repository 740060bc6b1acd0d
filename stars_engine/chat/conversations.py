"""Encode conversations: with the model's chat template and tools, or as a plain transcript."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

from stars_engine.chat.answers import acceptable, encode_answer
from stars_engine.chat.formats import (
    CLOSING,
    GENERIC,
    MISTRAL,
    MISTRAL_NAMED,
    OPENING,
    ToolFormat,
    format_of,
)
from stars_engine.chat.replies import ReasoningMode, ReplyReader
from stars_engine.chat.template import (
    NO_KWARGS,
    TemplateKwargs,
    encode_rendered,
    has_template,
    knows_tools,
    render,
)
from stars_engine.chat.tool_grammars import tool_grammar
from stars_engine.chat.turns import (
    linked,
    roles_of,
    with_calls_as_text,
    with_schema_as_text,
    with_short_ids,
    with_tools_as_text,
)
from stars_engine.config import EbnfGrammar
from stars_engine.messages import Chat, Message
from stars_engine.tokenization.added_tokens import template_sources
from stars_engine.tokenization.codec import Codec
from stars_engine.types import RewardPrompt

logger = logging.getLogger(__name__)

_USER_TURN = "\n\nUser:"
_announced: WeakKeyDictionary[Codec, bool] = WeakKeyDictionary()
_merged: WeakKeyDictionary[Codec, bool] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class ResolvedPrompt:
    """A prompt in the form that the models read.

    Attributes:
        token_ids: Ids for the language model, at least one.
        for_reward: The same prompt, or its replacement, for the reward model.
        prefill: The assistant prefill: the beginning of the answer, at the end of `token_ids`.
        grammar: The grammar of the answer, if tools constrain it.
        stop: Stop strings in addition to those of the request.
        replies: Reads the answers to a conversation; None if the prompt is text to continue.
    """

    token_ids: tuple[int, ...]
    for_reward: RewardPrompt
    prefill: str = ""
    grammar: EbnfGrammar | None = None
    stop: tuple[str, ...] = ()
    replies: ReplyReader | None = None


def read_conversation(
    chat: Chat, codec: Codec, template_kwargs: TemplateKwargs = NO_KWARGS
) -> ResolvedPrompt:
    """Encode a conversation, and determine what the answer may be.

    The model's template renders messages, tools and calls. If it does not support tools, or writes
    calls in an unknown format, the tools are described as text and calls are JSON. Without a
    template, the conversation becomes a transcript. If the template rejects the conversation, its
    messages are merged (`acceptable`).

    Args:
        chat: The conversation.
        codec: The model's tokenizer.
        template_kwargs: Variables for the template; those of the conversation take precedence.

    Raises:
        PromptError: The template rejects the messages.
    """
    variables = {**template_kwargs, **chat.chat_template_kwargs}
    form = format_of(_template(codec))
    messages, tools = linked(chat.messages), chat.tools if chat.callable_tools else ()
    if _uses_tools(chat) and (form is GENERIC or not knows_tools(codec, variables)):
        form = GENERIC
        messages, tools = with_tools_as_text(chat, form, codec.reserved_tokens), ()
    elif form in (MISTRAL, MISTRAL_NAMED):
        messages = with_short_ids(messages)
    if chat.answer_schema is not None:
        messages = with_schema_as_text(messages, chat.answer_schema)
    prefill = messages[-1].content if chat.continue_final_message else ""
    if has_template(codec):
        whole = messages[:-1] if prefill else messages
        taken = acceptable(codec, whole, tools, has_answer=bool(prefill), template_kwargs=variables)
        if taken != whole:
            _announce_merging(codec, whole)
        messages = (*taken, *messages[len(whole) :])
    before = messages[:-1]
    stop: tuple[str, ...] = ()
    reasoning_mode: ReasoningMode = "none"
    if not has_template(codec):
        _announce_transcript(codec)
        ids, stop = codec.encode_prompt(_as_transcript(messages, prefill)), (_USER_TURN,)
    elif prefill:
        ids = encode_answer(
            codec, before, prefill, tools=tools, end_of_turn=False, template_kwargs=variables
        )
        if CLOSING in _template(codec):
            reasoning_mode = (
                "open" if prefill.rfind(OPENING) > prefill.rfind(CLOSING) else "optional"
            )
        if not codec.decode(ids).endswith(prefill):
            prefill = prefill.strip()  # the template strips it too
    else:
        rendered = render(
            codec, messages, tools, add_generation_prompt=True, template_kwargs=variables
        )
        ids, reasoning_mode = (
            encode_rendered(codec, rendered),
            _reasoning_mode(rendered.text, codec),
        )
    said = chat.messages[:-1] if prefill else chat.messages
    shown = with_calls_as_text(said, form, codec.reserved_tokens)
    # After a prefill, only a marker distinguishes a call from text.
    tools_left = () if prefill and not form.marker else chat.callable_tools
    return ResolvedPrompt(
        token_ids=tuple(ids),
        for_reward=RewardPrompt(transcript(shown), tuple(ids), shown),
        prefill=prefill,
        grammar=_grammar(chat, form, codec, reasoning_mode) if tools_left else None,
        stop=stop,
        replies=ReplyReader(codec, form, tools_left, reasoning_mode, chat.must_call),
    )


def with_closed_reasoning(prompt: ResolvedPrompt) -> ResolvedPrompt:
    """Return the prompt with the reasoning closed that its template opens, if it opens any.

    The answers of a grammar have no room for reasoning.
    """
    replies = prompt.replies
    if replies is None or replies.reasoning_mode != "open" or prompt.prefill:
        return prompt
    closing = replies.codec.encode_rendered(f"\n{CLOSING}\n\n")
    ids = (*prompt.token_ids, *closing)
    seen = prompt.for_reward
    return replace(
        prompt,
        token_ids=ids,
        for_reward=seen if seen.token_ids is None else replace(seen, token_ids=ids),
        replies=replace(replies, reasoning_mode="none"),
    )


def transcript(messages: Sequence[Message]) -> str:
    """Return a conversation as plain text; a single user message is just its content."""
    if len(messages) == 1 and messages[0].role == "user":
        return messages[0].content
    return "\n\n".join(f"{m.role.capitalize()}: {m.content}" for m in messages)


def _uses_tools(chat: Chat) -> bool:
    return bool(chat.callable_tools) or any(
        message.role == "tool" or message.tool_calls for message in chat.messages
    )


def _grammar(
    chat: Chat, form: ToolFormat, codec: Codec, reasoning_mode: ReasoningMode
) -> EbnfGrammar | None:
    if not (chat.callable_tools and chat.constrain_tools):
        return None
    one = chat.tool_choice == chat.callable_tools[0].name  # chosen by name
    return tool_grammar(
        chat.callable_tools,
        form,
        codec,
        must_call=chat.must_call,
        several=chat.parallel_tool_calls and not one,
        compact=chat.compact_calls,
        reasoning_mode=reasoning_mode,
    )


def _reasoning_mode(rendered: str, codec: Codec) -> ReasoningMode:
    """Return whether the answer may begin with reasoning, or the prompt has opened it."""
    end = rendered.rstrip()
    if end.endswith(OPENING):
        return "open"
    return "optional" if CLOSING in _template(codec) and not end.endswith(CLOSING) else "none"


def _template(codec: Codec) -> str:
    return "\n".join(template_sources(codec.tokenizer))


def _as_transcript(messages: Sequence[Message], prefill: str) -> str:
    if prefill:
        *before, last = messages
        return _as_transcript(before, "") + f" {last.content}"
    turns = (f"{message.role.capitalize()}: {message.content}" for message in messages)
    return "\n\n".join([*turns, "Assistant:"])


def _announce_transcript(codec: Codec) -> None:
    if codec not in _announced:
        _announced[codec] = True
        logger.warning(
            "The model's tokenizer has no chat template; conversations become a plain transcript "
            "(User: ... Assistant: ...). Hint: set TransformersModel(chat_template=...), or use a "
            "chat model"
        )


def _announce_merging(codec: Codec, messages: Sequence[Message]) -> None:
    if codec not in _merged:
        _merged[codec] = True
        logger.warning(
            "The model's chat template rejects this order of roles: %s. Consecutive messages of "
            "the same role are joined, and system messages are merged into user messages. Hint: "
            "use roles that the template accepts, or set TransformersModel(chat_template=...)",
            roles_of(messages),
        )
