"""Convert LlamaIndex prompts and messages for the engine."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from llama_index.core.base.llms.generic_utils import messages_to_prompt as generic
from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    DocumentBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.llms.llm import LLM, default_completion_to_prompt

from stars_engine import Chat, Message, PromptError, RenderedPrompt, StarsConfig, ToolCall
from stars_engine.integrations import ToolNames
from stars_engine.types import Prompt

_TEXT_TYPES = {"application/json", "application/xml", "application/yaml", "application/x-yaml"}
_ROLES = {
    MessageRole.DEVELOPER: "system",
    MessageRole.MODEL: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.FUNCTION: "tool",
}


def completion_prompt(
    llm: LLM, text: str, settings: StarsConfig, *, formatted: bool, has_template: bool
) -> tuple[Prompt, StarsConfig]:
    """Return the prompt of a completion, and the settings to read it with.

    `prompt_format` determines how an unformatted string is read, unless the user set a
    `completion_to_prompt` function. A formatted string is read as rendered, with control tokens, if
    that function exists or the model has a chat template; otherwise, nothing can have rendered it,
    and it is plain text. Begin-of-text is added before it once.

    LlamaIndex's `query_wrapper_prompt` and `system_prompt` apply to unformatted strings; a user's
    `completion_to_prompt` function replaces the latter, as in HuggingFaceLLM.
    """
    if not formatted and llm.query_wrapper_prompt is not None:
        text = llm.query_wrapper_prompt.format(query_str=text)
    assert llm.completion_to_prompt is not None
    if llm.completion_to_prompt is not default_completion_to_prompt:
        written = text if formatted else llm.completion_to_prompt(text)
        return RenderedPrompt(written, add_special_tokens=True), settings
    if formatted and has_template:
        return RenderedPrompt(text, add_special_tokens=True), settings
    if not formatted and llm.system_prompt:
        if has_template and settings.prompt_format in ("auto", "chat"):
            said = Message(role="system", content=llm.system_prompt)
            return Chat([said, Message(role="user", content=text)]), settings
        text = f"{llm.system_prompt}\n\n{text}"
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
    """Return the prompt of a conversation, and the settings to read it with.

    The user's `messages_to_prompt` renders it, or else the model's chat template. Without either,
    it becomes a `Chat` if it uses tools, and otherwise LlamaIndex's plain transcript.

    Args:
        llm: The model whose prompt functions apply.
        messages: The conversation.
        settings: The settings of the call.
        has_template: Whether the model has a chat template.
        tools: The fields of `stars_engine.Chat` in the call.
        names: The names of its tools.

    Raises:
        PromptError: A message contains something other than text, calls and their results, or
            there are both tools and a `messages_to_prompt`.
    """
    turns = [read_message(message, names) for message in messages]
    uses_tools = bool(tools.get("tools")) or any(turn.tool_calls for turn in turns)
    if is_own_template(llm):
        assert llm.messages_to_prompt is not None
        if tools.get("tools"):
            raise PromptError(
                "tools need the model's chat template, but messages_to_prompt replaces it. Hint: "
                "remove messages_to_prompt, or the tools (for structured output, use "
                "pydantic_program_mode='llm')"
            )
        written = llm.messages_to_prompt(messages)
        return RenderedPrompt(written, messages=turns, add_special_tokens=True), settings
    if has_template or uses_tools:
        return Chat(turns, **tools), settings
    return generic(messages), settings.replace(prompt_format="raw")


def is_own_template(llm: LLM) -> bool:
    """Whether a function of the user renders conversations."""
    return llm.messages_to_prompt is not generic


def read_message(message: ChatMessage, names: ToolNames | None = None) -> Message:
    """Convert a message for the engine; tools get the names that the model writes.

    Raises:
        PromptError: It contains something other than text, reasoning, calls and their results.
    """
    role = _ROLES.get(message.role, message.role.value)
    text, reasoning, calls = [], [], []
    for block in message.blocks:
        match block:
            case TextBlock():
                text.append(block.text)
            case ThinkingBlock():
                reasoning.append(block.content or "")
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
    extra = message.additional_kwargs
    names = ToolNames() if names is None else names
    is_tool = role == "tool"
    name = extra.get("name") if is_tool else None
    made = Message(
        role=role,
        content="\n".join(text),
        reasoning="\n".join(filter(None, reasoning)) or None,
        tool_calls=calls or extra.get("tool_calls") or (),
        tool_call_id=extra.get("tool_call_id") if is_tool else None,
        name=name and names.written(name),
    )
    if not made.tool_calls:
        return made
    written = [call.replace(name=names.written(call.name)) for call in made.tool_calls]
    return made.replace(tool_calls=tuple(written))


def _is_text(mimetype: str) -> bool:
    return mimetype.startswith("text/") or mimetype in _TEXT_TYPES


def _texts_of(block: Any) -> list[str]:
    """Return the text of another block: of an embedded document, or of citable content.

    Raises:
        PromptError: It contains something other than text, or only a reference.
    """
    match block:
        case TextBlock():
            return [block.text]
        case CachePoint():  # only says up to where a provider caches the prompt
            return []
        case CitableBlock():
            return [block.title, *(text for part in block.content for text in _texts_of(part))]
        case CitationBlock():
            return [block.title, *_texts_of(block.cited_content)]
        case DocumentBlock() if _is_text(str(block.document_mimetype)):
            with suppress(ValueError, OSError):  # invalid base64 or UTF-8, or no such file
                if isinstance(block.data, bytes):
                    return [b64decode(block.data, validate=True).decode()]
                if block.path is not None:
                    return [Path(block.path).read_text(encoding="utf-8")]
    raise PromptError(
        f"a message contains a {type(block).__name__}, but this model reads only text. Hint: "
        "remove it, or describe it as text"
    )
