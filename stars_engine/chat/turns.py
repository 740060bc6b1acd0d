"""Convert messages for chat templates, including templates without support for tools."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

from stars_engine.chat.formats import ToolFormat
from stars_engine.messages import Chat, Message, Tool, ToolCall
from stars_engine.schema_formats.compact import compacted
from stars_engine.schema_formats.library_types import without_reasons
from stars_engine.threads.give_way import give_way

TemplateMessage = dict[str, Any]
_MAX_ROLES = 32  # in an error


def turns_of(messages: Sequence[Message]) -> list[TemplateMessage]:
    """Return messages as dictionaries with the keys that published templates read."""
    turns = []
    for message in messages:
        give_way()
        turns.append(_turn(message))
    return turns


def tools_of(tools: Sequence[Tool]) -> list[dict[str, Any]] | None:
    """Return tools as dictionaries with the keys that published templates read, or None."""
    listed = [{"type": "function", "function": tool.described()} for tool in tools]
    return listed or None


def with_tools_as_text(
    chat: Chat, form: ToolFormat, reserved: Sequence[str]
) -> tuple[Message, ...]:
    """Return a conversation with tools, calls and results as text."""
    messages = with_calls_as_text(chat.messages, form, reserved)
    if not chat.tools or chat.tool_choice == "none":
        return messages
    return _with_system_text(messages, _instructions(chat.tools, form))


def with_schema_as_text(messages: Sequence[Message], schema: dict[str, Any]) -> tuple[Message, ...]:
    """Return messages whose system message describes the JSON schema of the answer."""
    shown = _dumped(compacted(without_reasons(schema)))
    return _with_system_text(messages, f"Answer with JSON that conforms to this schema:\n{shown}")


def _with_system_text(messages: Sequence[Message], text: str) -> tuple[Message, ...]:
    if messages[0].role == "system":
        first = messages[0].replace(content=f"{messages[0].content}\n\n{text}")
        return (first, *messages[1:])
    return (Message(role="system", content=text), *messages)


def with_calls_as_text(
    messages: Sequence[Message], form: ToolFormat, reserved: Sequence[str]
) -> tuple[Message, ...]:
    """Return messages with calls as text of the assistant, and results as text of the user.

    Args:
        messages: The conversation.
        form: The format of calls.
        reserved: Tokens that must not occur in the arguments of calls.
    """
    return tuple(_said(message, form, reserved) for message in messages)


def linked(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return messages in which each tool result names its call; results are in call order."""
    open_calls: dict[int, ToolCall] = {}  # in order
    by_id: dict[str, deque[int]] = {}
    found = []
    for message in messages:
        give_way()
        if message.role == "assistant":
            open_calls, by_id = dict(enumerate(message.tool_calls)), {}
            for position, call in open_calls.items():
                by_id.setdefault(call.id, deque()).append(position)
        call_id = message.tool_call_id
        if call_id:
            number = next(iter(by_id.get(call_id, ())), None)
        else:
            number = next(iter(open_calls), None)
        if message.role != "tool" or number is None:
            found.append(message)
            continue
        answered = open_calls.pop(number)
        by_id[answered.id].popleft()  # always the first call of its id
        found.append(
            message.replace(
                tool_call_id=call_id or answered.id or None, name=message.name or answered.name
            )
        )
    return tuple(found)


def with_short_ids(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return messages with call ids of nine letters and digits, as Mistral's templates require."""
    numbered = []
    for index, message in enumerate(messages):
        calls = tuple(
            call.replace(id=_short(call.id or f"{index}.{number}"))
            for number, call in enumerate(message.tool_calls)
        )
        changes: dict[str, Any] = {"tool_calls": calls} if calls else {}
        if message.tool_call_id:
            changes["tool_call_id"] = _short(message.tool_call_id)
        numbered.append(message.replace(**changes) if changes else message)
    return linked(numbered)


def _short(name: str) -> str:
    if len(name) == 9 and name.isascii() and name.isalnum():
        return name
    return sha256(name.encode()).hexdigest()[:9]


def roles_of(messages: Sequence[Message]) -> str:
    """Return the roles of messages for an error or the log; if there are many, the first."""
    shown = ", ".join(message.role for message in messages[:_MAX_ROLES])
    more = len(messages) - _MAX_ROLES
    return f"{shown} and {more} more" if more > 0 else shown


def texts_of(value: Any) -> list[str]:
    """Return all strings in messages or tools, including keys."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        give_way()
        return [text for pair in value.items() for part in pair for text in texts_of(part)]
    if isinstance(value, list | tuple):
        return [text for part in value for text in texts_of(part)]
    return []


def mapped(value: Any, change: Callable[[str], str]) -> Any:
    """Apply a change to all strings in messages or tools, including keys."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {mapped(key, change): mapped(part, change) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [mapped(part, change) for part in value]
    return value


def _turn(message: Message) -> TemplateMessage:
    written = [message.content, *(call.text for call in message.invalid_tool_calls)]
    turn: TemplateMessage = {"role": message.role, "content": "\n".join(filter(None, written))}
    if message.reasoning is not None:
        turn["reasoning_content"] = message.reasoning
    if message.tool_calls:
        turn["tool_calls"] = [_call(call) for call in message.tool_calls]
    for name in ("tool_call_id", "name"):
        if (value := getattr(message, name)) is not None:
            turn[name] = value
    return turn


def _call(call: ToolCall) -> TemplateMessage:
    function = {"name": call.name, "arguments": call.arguments}
    return {"type": "function", **({"id": call.id} if call.id else {}), "function": function}


def _said(message: Message, form: ToolFormat, reserved: Sequence[str]) -> Message:
    give_way()
    if message.role == "tool":
        of = f" of {message.name}" if message.name else ""
        return Message(role="user", content=f"Result{of}: {message.content}")
    parts = [message.content, *(call.text for call in message.invalid_tool_calls)]
    if message.tool_calls:
        calls = [(call.name, call.arguments) for call in message.tool_calls]
        parts.append(form.write(calls, reserved))
    return Message(role=message.role, content="\n".join(filter(None, parts)))


def described(tool: Tool) -> str:
    """Return a short description of a tool as JSON."""
    about = {"description": tool.description} if tool.description else {}
    facts = {"name": tool.name, **about, "parameters": compacted(without_reasons(tool.parameters))}
    return _dumped(facts)


def _dumped(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _instructions(tools: Sequence[Tool], form: ToolFormat) -> str:
    listed = "\n".join(described(tool) for tool in tools)
    example = form.write([("name of the tool", {})])
    return (
        f"You may call these tools:\n{listed}\n\nTo call a tool, answer with nothing but JSON of "
        f"this form, and the arguments that its parameters describe:\n{example}"
    )
