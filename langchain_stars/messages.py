"""LangChain's messages and tools as the engine's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.utils.function_calling import convert_to_openai_tool

from stars_engine import InvalidToolCall, Message, PromptError, ToolCall

_ROLES = {"developer": "system", "human": "user", "ai": "assistant"}
# Blocks of an assistant's content that stand elsewhere in the message, or that nobody reads again.
_NO_CONTENT = {
    "reasoning",
    "thinking",
    "redacted_thinking",
    "tool_call",
    "tool_call_chunk",
    "invalid_tool_call",
    "tool_use",
    "function_call",
}


def read_messages(messages: Iterable[BaseMessage]) -> list[Message]:
    """Return messages as the engine has them.

    Names of speakers are left out, as by most models; those of tools are kept.

    Raises:
        PromptError: A message is of a kind that no model here reads.
        ConfigError: A content has parts that are no text.
    """
    return [_read(message) for message in messages]


def read_tools(tools: Sequence[Any]) -> list[dict[str, Any]]:
    """Return tools of any kind (functions, models, schemas, `BaseTool`) in the OpenAI format."""
    return [convert_to_openai_tool(tool) for tool in tools]


def read_tool_choice(choice: Any, names: Sequence[str]) -> str:
    """Return a choice as the engine has it.

    Args:
        choice: "auto", "none", "any" or "required", True (a call, of the tool if there is one),
            False or None (as the model likes), a tool's name, or the OpenAI and Anthropic formats.
        names: The tools that there are.

    Raises:
        PromptError: It is none of these.
    """
    if isinstance(choice, Mapping):
        inner = choice.get("function", choice)
        kind = choice.get("type")
        choice = inner.get("name") if kind in ("function", "tool") else kind
    if choice is None or choice is False:
        return "auto"
    if choice is True:
        return names[0] if len(names) == 1 else "required"
    allowed = ("auto", "none", "any", "required", *names)
    if choice not in allowed:
        raise PromptError(
            f"tool_choice={choice!r} is neither a tool nor a way to choose. Allowed: "
            f"{', '.join(map(repr, allowed))}, True, False and None"
        )
    return str(choice)


def _read(message: BaseMessage) -> Message:
    match message:
        case SystemMessage():
            return Message(role="system", content=message.content)
        case HumanMessage():
            return Message(role="user", content=message.content)
        case AIMessage():
            return Message(
                role="assistant",
                content=_content_of(message),
                reasoning=_reasoning_of(message) or None,
                tool_calls=[
                    ToolCall(name=call["name"], arguments=call["args"], id=call["id"] or "")
                    for call in message.tool_calls
                ],
                invalid_tool_calls=[
                    InvalidToolCall(
                        text=call["args"] or call["name"] or "",
                        error=call["error"] or "it is none",
                        name=call["name"],
                    )
                    for call in message.invalid_tool_calls
                ],
            )
        case ToolMessage():
            return Message(
                role="tool",
                content=_result_of(message),
                tool_call_id=message.tool_call_id,
                name=message.name,
            )
        case ChatMessage():
            return Message(role=_ROLES.get(message.role, message.role), content=message.content)
    raise PromptError(
        f"a {type(message).__name__} is no turn of a conversation. Cure: SystemMessage, "
        "HumanMessage, AIMessage, ToolMessage, or ChatMessage with one of their roles"
    )


def _content_of(message: AIMessage) -> Any:
    if isinstance(message.content, str):
        return message.content
    parts: list[Any] = [part for part in message.content if _kind_of(part) not in _NO_CONTENT]
    return [part["refusal"] if _kind_of(part) == "refusal" else part for part in parts]


def _reasoning_of(message: AIMessage) -> str:
    told = message.additional_kwargs.get("reasoning_content")
    if isinstance(told, str):
        return told
    blocks: list[Any] = message.content if isinstance(message.content, list) else []
    thoughts = [part for part in blocks if _kind_of(part) in ("reasoning", "thinking")]
    return "\n".join(part.get("reasoning") or part.get("thinking") or "" for part in thoughts)


def _result_of(message: ToolMessage) -> Any:
    """Return what a tool gave: text, or what is no text as JSON."""
    if isinstance(message.content, str):
        return message.content
    parts: list[Any] = message.content
    return [json.dumps(part["json"]) if _kind_of(part) == "json" else part for part in parts]


def _kind_of(part: Any) -> Any:
    return part.get("type") if isinstance(part, Mapping) else "text"
