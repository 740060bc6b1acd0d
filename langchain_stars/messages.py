"""Convert LangChain messages to engine messages."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages import InvalidToolCall as InvalidCall

from langchain_stars.blocks import as_text, kind_of
from stars_engine import InvalidToolCall, Message, PromptError, ToolCall
from stars_engine.integrations import ToolNames

_ROLES = {"developer": "system", "human": "user", "ai": "assistant"}
# Blocks of assistant content that are stored elsewhere in the message, or are not needed again.
_NO_CONTENT = {
    "reasoning",
    "thinking",
    "redacted_thinking",
    "tool_call",
    "tool_call_chunk",
    "invalid_tool_call",
    "tool_use",
    "function_call",
    "refusal",  # the reason for a refusal is not part of the conversation
    "server_tool_call",
    "server_tool_call_chunk",
    "server_tool_result",
    "web_search_call",
    "code_interpreter_call",
    "file_search_call",
    "non_standard",
}


def read_messages(messages: Iterable[BaseMessage], names: ToolNames | None = None) -> list[Message]:
    """Convert messages to the engine's form.

    Names of speakers are dropped, because most models do not read them. Names of tools are
    converted to the names that the model writes.

    Raises:
        PromptError: A message has an unsupported type.
        ConfigError: A content has parts that are not text.
    """
    names = ToolNames() if names is None else names
    return [_read(message, names) for message in messages]


def _read(message: BaseMessage, names: ToolNames) -> Message:
    match message:
        case SystemMessage():
            return Message(role="system", content=as_text(message.content))
        case HumanMessage():
            return Message(role="user", content=as_text(message.content))
        case AIMessage():
            return Message(
                role="assistant",
                content=_content_of(message),
                reasoning=_reasoning_of(message) or None,
                tool_calls=[
                    ToolCall(
                        name=names.written(call["name"]),
                        arguments=call["args"],
                        id=call["id"] or "",
                    )
                    for call in message.tool_calls
                ],
                invalid_tool_calls=[
                    _invalid_call(call, names) for call in message.invalid_tool_calls
                ],
            )
        case ToolMessage():
            return Message(
                role="tool",
                content=_result_of(message),
                tool_call_id=message.tool_call_id,
                name=message.name and names.written(message.name),
            )
        case ChatMessage():
            role = _ROLES.get(message.role, message.role)
            return Message(role=role, content=as_text(message.content))
    raise PromptError(
        f"unsupported message type {type(message).__name__}. Hint: use SystemMessage, "
        "HumanMessage, AIMessage, ToolMessage, or ChatMessage with one of their roles"
    )


def _content_of(message: AIMessage) -> Any:
    if isinstance(message.content, str):
        return message.content
    return as_text([part for part in message.content if kind_of(part) not in _NO_CONTENT])


def _reasoning_of(message: AIMessage) -> str:
    extra = message.additional_kwargs.get("reasoning_content")
    if isinstance(extra, str):
        return extra
    blocks: list[Any] = message.content if isinstance(message.content, list) else []
    reasoning = [part for part in blocks if kind_of(part) in ("reasoning", "thinking")]
    return "\n".join(part.get("reasoning") or part.get("thinking") or "" for part in reasoning)


def _result_of(message: ToolMessage) -> Any:
    """Return the result of a tool as text; JSON parts are serialized."""
    if isinstance(message.content, str):
        return message.content
    parts: list[Any] = message.content
    return as_text(
        [json.dumps(part["json"]) if kind_of(part) == "json" else part for part in parts]
    )


def _invalid_call(call: InvalidCall, names: ToolNames) -> InvalidToolCall:
    name = call["name"] and names.written(call["name"])
    text = _as_written(call["args"])
    if name and name not in text:  # only the arguments, as in streams and from other providers
        text = f'{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {text}'
    return InvalidToolCall(text=text, error=call["error"] or "invalid tool call", name=name)


def _as_written(args: str | None) -> str:
    """Return the text of an invalid call; streams encode it as a JSON string, see `outputs`."""
    try:
        text = json.loads(args or "")
    except ValueError:
        return args or ""
    return text if isinstance(text, str) else args or ""
