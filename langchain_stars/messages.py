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
from pydantic import BaseModel

from langchain_stars.blocks import as_text, kind_of
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
    "refusal",  # which tells why, and was never said
    "server_tool_call",
    "server_tool_call_chunk",
    "server_tool_result",
    "web_search_call",
    "code_interpreter_call",
    "file_search_call",
    "non_standard",
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
    return [_read_tool(tool) for tool in tools]


def read_tool_choice(choice: Any, names: Sequence[str]) -> str:
    """Return a choice as the engine has it.

    Args:
        choice: "auto", "none", "any" or "required", True (a call, of the tool if there is one),
            False or None (as the model likes), a tool's name, or the OpenAI and Anthropic formats.
        names: The tools that there are.

    Raises:
        PromptError: It is none of these.
    """
    if choice is None or choice is False:
        return "auto"
    if isinstance(choice, Mapping):
        inner = choice.get("function", choice)
        named = inner.get("name") if isinstance(inner, Mapping) else None
        choice = named or (choice.get("type") if len(choice) == 1 else choice)
    if choice is True:
        return names[0] if len(names) == 1 else "required"
    allowed = ("auto", "none", "any", "required", *names)
    if not isinstance(choice, str) or choice not in allowed:
        raise PromptError(
            f"tool_choice={choice!r} is neither a tool nor a way to choose. Allowed: "
            f"{', '.join(map(repr, allowed))}, True, False and None"
        )
    return choice


def _read_tool(tool: Any) -> dict[str, Any]:
    if isinstance(tool, type) and issubclass(tool, BaseModel):
        schema = tool.model_json_schema()  # LangChain's conversion cuts recursive ones
        about = {"name": tool.__name__, "description": schema.pop("description", "")}
        return {"type": "function", "function": {**about, "parameters": schema}}
    made = convert_to_openai_tool(tool)
    if "function" not in made:
        raise PromptError(
            f"the tool {made.get('name') or made.get('type')!r} runs on its provider's servers, "
            "and this model runs here. Cure: a function, a pydantic model or a BaseTool"
        )
    return made


def _read(message: BaseMessage) -> Message:
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
                    ToolCall(name=call["name"], arguments=call["args"], id=call["id"] or "")
                    for call in message.tool_calls
                ],
                invalid_tool_calls=[
                    InvalidToolCall(
                        text=_as_written(call["args"]) or call["name"] or "",
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
            role = _ROLES.get(message.role, message.role)
            return Message(role=role, content=as_text(message.content))
    raise PromptError(
        f"a {type(message).__name__} is no turn of a conversation. Cure: SystemMessage, "
        "HumanMessage, AIMessage, ToolMessage, or ChatMessage with one of their roles"
    )


def _content_of(message: AIMessage) -> Any:
    if isinstance(message.content, str):
        return message.content
    return as_text([part for part in message.content if kind_of(part) not in _NO_CONTENT])


def _reasoning_of(message: AIMessage) -> str:
    told = message.additional_kwargs.get("reasoning_content")
    if isinstance(told, str):
        return told
    blocks: list[Any] = message.content if isinstance(message.content, list) else []
    thoughts = [part for part in blocks if kind_of(part) in ("reasoning", "thinking")]
    return "\n".join(part.get("reasoning") or part.get("thinking") or "" for part in thoughts)


def _result_of(message: ToolMessage) -> Any:
    """Return what a tool gave: text, or what is no text as JSON."""
    if isinstance(message.content, str):
        return message.content
    parts: list[Any] = message.content
    told = [json.dumps(part["json"]) if kind_of(part) == "json" else part for part in parts]
    return as_text(told)


def _as_written(args: str | None) -> str:
    """Return an invalid call's text; streams have it as a JSON string, see `outputs`."""
    try:
        text = json.loads(args or "")
    except ValueError:
        return args or ""
    return text if isinstance(text, str) else args or ""
