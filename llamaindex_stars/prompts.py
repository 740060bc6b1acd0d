"""LlamaIndex's prompts and messages as the engine's."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from llama_index.core.base.llms.generic_utils import messages_to_prompt as generic
from llama_index.core.base.llms.types import (
    ChatMessage,
    CitableBlock,
    DocumentBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.llms.llm import LLM, default_completion_to_prompt

from stars_engine import Chat, Message, PromptError, RenderedPrompt, StarsConfig, ToolCall
from stars_engine.tool_names import ToolNames
from stars_engine.types import Prompt

_ROLES = {
    MessageRole.DEVELOPER: "system",
    MessageRole.MODEL: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.FUNCTION: "tool",
}


def completion_prompt(
    llm: LLM, text: str, settings: StarsConfig, *, formatted: bool
) -> tuple[Prompt, StarsConfig]:
    """Return a completion's prompt, and settings under which it is read as meant.

    An unformatted string is what `prompt_format` says, unless the user gave a
    `completion_to_prompt` of his own. A formatted string is read as it is: with control tokens if
    that function wrote it, as plain text if nobody did. Begin of text comes before it, once.
    """
    assert llm.completion_to_prompt is not None
    if llm.completion_to_prompt is not default_completion_to_prompt:
        written = text if formatted else llm.completion_to_prompt(text)
        return RenderedPrompt(written, add_special_tokens=True), settings
    return text, settings.replace(prompt_format="raw") if formatted else settings


def chat_prompt(
    llm: LLM,
    messages: Sequence[ChatMessage],
    settings: StarsConfig,
    *,
    has_template: bool,
    tools: Mapping[str, Any],
    names: ToolNames,
) -> tuple[Prompt, StarsConfig]:
    """Return a conversation's prompt, and settings under which it is read as meant.

    It goes through the user's `messages_to_prompt`, else the model's chat template, else
    LlamaIndex's own plain transcript. Tools, and a model without a template, make it a `Chat`.

    Args:
        llm: Whose functions for prompts count.
        messages: The conversation.
        settings: Of the call.
        has_template: Whether the model has a chat template.
        tools: What of `stars_engine.Chat` the call gives.
        names: What its tools are called, outside and by the model.

    Raises:
        PromptError: A message holds something other than text, calls and their results, or tools
            are to go through a `messages_to_prompt`.
    """
    turns = [read_message(message, names) for message in messages]
    uses_tools = bool(tools.get("tools")) or any(turn.tool_calls for turn in turns)
    if is_own_template(llm):
        assert llm.messages_to_prompt is not None
        if tools.get("tools"):
            raise PromptError(
                "tools go through the model's chat template, and messages_to_prompt takes its "
                "place. Hint: no messages_to_prompt, or no tools (for structured output, "
                "pydantic_program_mode='llm')"
            )
        written = llm.messages_to_prompt(messages)
        return RenderedPrompt(written, messages=turns, add_special_tokens=True), settings
    if has_template or uses_tools:
        return Chat(turns, **tools), settings
    return generic(messages), settings.replace(prompt_format="raw")


def is_own_template(llm: LLM) -> bool:
    """Whether a user's function renders conversations."""
    return llm.messages_to_prompt is not generic


def read_message(message: ChatMessage, names: ToolNames | None = None) -> Message:
    """Return a message as the engine has it; tools are called as the model writes them.

    Raises:
        PromptError: It holds something other than text, thoughts, calls and their results.
    """
    role = _ROLES.get(message.role, message.role.value)
    text, thoughts, calls = [], [], []
    for block in message.blocks:
        match block:
            case TextBlock():
                text.append(block.text)
            case ThinkingBlock():
                thoughts.append(block.content or "")
            case ToolCallBlock():
                calls.append(
                    ToolCall(
                        name=block.tool_name,
                        arguments=block.tool_kwargs,
                        id=block.tool_call_id or "",
                    )
                )
            case _:
                text += _texts_of(block)
    told = message.additional_kwargs
    names = ToolNames() if names is None else names
    is_tool = role == "tool"
    name = told.get("name") if is_tool else None
    made = Message(
        role=role,
        content="\n".join(text),
        reasoning="\n".join(filter(None, thoughts)) or None,
        tool_calls=calls or told.get("tool_calls") or (),
        tool_call_id=told.get("tool_call_id") if is_tool else None,
        name=name and names.written(name),
    )
    if not made.tool_calls:
        return made
    written = [call.replace(name=names.written(call.name)) for call in made.tool_calls]
    return made.replace(tool_calls=tuple(written))


def _texts_of(block: Any) -> list[str]:
    """Return the text that another block holds: a document's in the block, what is to be cited.

    Raises:
        PromptError: It holds something else, or only says where it is.
    """
    match block:
        case TextBlock():
            return [block.text]
        case CitableBlock():
            return [block.title, *(text for part in block.content for text in _texts_of(part))]
        case DocumentBlock() if str(block.document_mimetype).startswith("text/") and isinstance(
            block.data, bytes
        ):
            with suppress(ValueError):  # of base64, or of UTF-8
                return [b64decode(block.data, validate=True).decode()]
    raise PromptError(
        f"a message holds {type(block).__name__}; this model reads text only. Hint: "
        "leave it out, or put it into words"
    )
