"""Conversations as prompts: through the model's template, with tools, or as a plain transcript."""

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
from stars_engine.chat.replies import ReplyReader, Thoughts
from stars_engine.chat.template import (
    NO_KWARGS,
    TemplateKwargs,
    encode_rendered,
    has_template,
    knows_tools,
    render,
    sources_of,
)
from stars_engine.chat.tool_grammars import tool_grammar
from stars_engine.chat.turns import in_words, linked, spoken, with_short_ids
from stars_engine.config import EbnfGrammar
from stars_engine.messages import Chat, Message
from stars_engine.tokenization.codec import Codec
from stars_engine.types import RewardPrompt

logger = logging.getLogger(__name__)

_USER_TURN = "\n\nUser:"
_announced: WeakKeyDictionary[Codec, bool] = WeakKeyDictionary()
_merged: WeakKeyDictionary[Codec, bool] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class ResolvedPrompt:
    """A prompt as the models read it.

    Attributes:
        token_ids: Ids for the language model, at least one.
        for_reward: The same prompt, or its replacement, for the reward model.
        begun: What the assistant has begun to say, at the end of `token_ids`.
        grammar: What the answer may be, where tools rule that.
        stop: Strings that end the answer, beside those of the request.
        replies: Reads the answers to a conversation; None for text to continue.
    """

    token_ids: tuple[int, ...]
    for_reward: RewardPrompt
    begun: str = ""
    grammar: EbnfGrammar | None = None
    stop: tuple[str, ...] = ()
    replies: ReplyReader | None = None


def read_conversation(
    chat: Chat, codec: Codec, template_kwargs: TemplateKwargs = NO_KWARGS
) -> ResolvedPrompt:
    """Encode a conversation, and tell what may be answered.

    The model's template renders messages, tools and calls. Where it knows no tools, or calls in no
    format of ours, they are told in words, and calls are JSON; where there is no template, the
    conversation is a transcript. A conversation that the template rejects is merged (`acceptable`).

    Args:
        chat: The conversation.
        codec: The model's tokenizer.
        template_kwargs: Variables of the template; the conversation's own count more.

    Raises:
        PromptError: The template rejects the messages.
    """
    variables = {**template_kwargs, **chat.chat_template_kwargs}
    form = format_of(_template(codec))
    messages, tools = linked(chat.messages), chat.tools if chat.callable_tools else ()
    if _uses_tools(chat) and (form is GENERIC or not knows_tools(codec, variables)):
        form = GENERIC
        messages, tools = in_words(chat, form, codec.reserved_tokens), ()
    elif form in (MISTRAL, MISTRAL_NAMED):
        messages = with_short_ids(messages)
    begun = messages[-1].content if chat.continue_final_message else ""
    if has_template(codec):
        whole = messages[:-1] if begun else messages
        taken = acceptable(codec, whole, tools, has_answer=bool(begun), template_kwargs=variables)
        if taken != whole:
            _announce_merging(codec, whole)
        messages = (*taken, *messages[len(whole) :])
    before = messages[:-1]
    stop: tuple[str, ...] = ()
    thoughts: Thoughts = "none"
    if not has_template(codec):
        _announce_transcript(codec)
        ids, stop = codec.encode_prompt(_as_transcript(messages, begun)), (_USER_TURN,)
    elif begun:
        ids = encode_answer(
            codec, before, begun, tools=tools, end_of_turn=False, template_kwargs=variables
        )
        if CLOSING in _template(codec):
            thoughts = "begun" if begun.rfind(OPENING) > begun.rfind(CLOSING) else "may"
        if not codec.decode(ids).endswith(begun):
            begun = begun.strip()  # as the template does
    else:
        rendered = render(
            codec, messages, tools, add_generation_prompt=True, template_kwargs=variables
        )
        ids, thoughts = encode_rendered(codec, rendered), _thoughts(rendered.text, codec)
    said = chat.messages[:-1] if begun else chat.messages
    told = spoken(said, form, codec.reserved_tokens)
    # Only a marker tells a call within an answer that goes on with text.
    tools_left = () if begun and not form.marker else chat.callable_tools
    return ResolvedPrompt(
        token_ids=tuple(ids),
        for_reward=RewardPrompt(transcript(told), tuple(ids), told),
        begun=begun,
        grammar=_grammar(chat, form, codec, thoughts) if tools_left else None,
        stop=stop,
        replies=ReplyReader(codec, form, tools_left, thoughts, chat.must_call),
    )


def without_thought(prompt: ResolvedPrompt) -> ResolvedPrompt:
    """Return a prompt whose template has begun a thought with the thought closed.

    For answers of a grammar, which has no place for one.
    """
    replies = prompt.replies
    if replies is None or replies.thoughts != "begun" or prompt.begun:
        return prompt
    closing = replies.codec.encode_rendered(f"\n{CLOSING}\n\n")
    ids = (*prompt.token_ids, *closing)
    seen = prompt.for_reward
    return replace(
        prompt,
        token_ids=ids,
        for_reward=seen if seen.token_ids is None else replace(seen, token_ids=ids),
        replies=replace(replies, thoughts="none"),
    )


def transcript(messages: Sequence[Message]) -> str:
    """Return a conversation as plain text; a lone user turn is just its content."""
    if len(messages) == 1 and messages[0].role == "user":
        return messages[0].content
    return "\n\n".join(f"{m.role.capitalize()}: {m.content}" for m in messages)


def _uses_tools(chat: Chat) -> bool:
    return bool(chat.callable_tools) or any(
        message.role == "tool" or message.tool_calls for message in chat.messages
    )


def _grammar(chat: Chat, form: ToolFormat, codec: Codec, thoughts: Thoughts) -> EbnfGrammar | None:
    if not (chat.callable_tools and chat.constrain_tools):
        return None
    one = chat.tool_choice == chat.callable_tools[0].name  # chosen by its name
    return tool_grammar(
        chat.callable_tools,
        form,
        codec,
        must_call=chat.must_call,
        several=chat.parallel_tool_calls and not one,
        thoughts=thoughts,
    )


def _thoughts(rendered: str, codec: Codec) -> Thoughts:
    """Tell whether the answer may begin with a thought, or the prompt has begun one."""
    end = rendered.rstrip()
    if end.endswith(OPENING):
        return "begun"
    return "may" if CLOSING in _template(codec) and not end.endswith(CLOSING) else "none"


def _template(codec: Codec) -> str:
    return "\n".join(sources_of(codec))


def _as_transcript(messages: Sequence[Message], begun: str) -> str:
    if begun:
        *before, last = messages
        return _as_transcript(before, "") + f" {last.content}"
    turns = (f"{message.role.capitalize()}: {message.content}" for message in messages)
    return "\n\n".join([*turns, "Assistant:"])


def _announce_transcript(codec: Codec) -> None:
    if codec not in _announced:
        _announced[codec] = True
        logger.warning(
            "the model's tokenizer has no chat template: conversations are read as a plain "
            "transcript (User: ... Assistant: ...). Hint: TransformersModel(chat_template=...), or "
            "a model trained for conversations"
        )


def _announce_merging(codec: Codec, messages: Sequence[Message]) -> None:
    if codec not in _merged:
        _merged[codec] = True
        logger.warning(
            "the model's chat template does not take %s as they are: consecutive turns of one role "
            "are joined, and what the system says goes into the user's turn. Hint: roles that the "
            "template takes, or TransformersModel(chat_template=...)",
            ", ".join(message.role for message in messages),
        )
