"""LlamaIndex's prompts and messages as the engine's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.generic_utils import messages_to_prompt as generic
from llama_index.core.base.llms.types import (
    ChatMessage,
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
    that function wrote it, as plain text if nobody did.
    """
    assert llm.completion_to_prompt is not None
    if llm.completion_to_prompt is not default_completion_to_prompt:
        return RenderedPrompt(text if formatted else llm.completion_to_prompt(text)), settings
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
                "place. Cure: no messages_to_prompt, or no tools (for structured output, "
                "pydantic_program_mode='llm')"
            )
        return RenderedPrompt(llm.messages_to_prompt(messages), messages=turns), settings
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
                raise PromptError(
                    f"a message holds {type(block).__name__}; this model reads text only. Cure: "
                    "leave it out, or put it into words"
                )
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
