"""Items of a response's input, as messages, and of its output."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from stars_engine.integrations import ToolNames
from stars_engine.messages import Message, ToolCall
from stars_engine.server.conversations import naming
from stars_engine.server.responses.bodies import (
    CallItem,
    ContentPart,
    MessageItem,
    OutputItem,
    ReasoningItem,
    ResponsesBody,
)

_PREFIXES = {"message": "msg", "function_call": "fc", "reasoning": "rs"}


def conversation_of(body: ResponsesBody) -> tuple[list[Message], ToolNames]:
    """Return the input as messages, and the names of the tools.

    Reasoning, text and calls that follow each other are one message of the assistant.

    Raises:
        ApiError: An item has a value that is not allowed.
        ConfigError: Items do not fit together.
    """
    names = ToolNames(tool.name for tool in body.tools or [])
    messages = _Messages(names)
    if body.instructions is not None:
        messages.add("system", body.instructions)
    if isinstance(body.input, str):
        messages.add("user", body.input)
    else:
        for index, item in enumerate(body.input):
            with naming(f"input[{index}]"):
                messages.add_item(item)
    return messages.ended(), names


class _Messages:
    """Collects items into messages."""

    def __init__(self, names: ToolNames) -> None:
        self._names = names
        self._messages: list[Message] = []
        self._reasoning = ""
        self._content: str | None = None
        self._calls: list[ToolCall] = []

    def add(self, role: Any, content: str) -> None:
        """Add a message that is not the assistant's."""
        self._end_turn()
        self._messages.append(Message(role=role, content=content))

    def add_item(self, item: MessageItem | CallItem | OutputItem | ReasoningItem) -> None:
        """Add an item."""
        match item:
            case MessageItem(role="assistant"):
                if self._content is not None or self._calls:
                    self._end_turn()
                self._content = text_of(item.content)
            case MessageItem():
                role = "system" if item.role == "developer" else item.role
                self.add(role, text_of(item.content))
            case CallItem():
                name = self._names.written(item.name)
                arguments: Any = item.arguments  # JSON is parsed
                self._calls.append(ToolCall(name=name, arguments=arguments, id=item.call_id))
            case OutputItem():
                self._end_turn()
                content = text_of(item.output)
                message = Message(role="tool", content=content, tool_call_id=item.call_id)
                self._messages.append(message)
            case ReasoningItem():
                self._end_turn()
                parts = item.content or item.summary
                self._reasoning = "".join(part.text for part in parts)

    def ended(self) -> list[Message]:
        """Return all messages."""
        self._end_turn()
        return self._messages

    def _end_turn(self) -> None:
        if self._content is not None or self._calls:
            message = Message(
                role="assistant",
                content=self._content or "",
                reasoning=self._reasoning or None,
                tool_calls=tuple(self._calls),
            )
            self._messages.append(message)
        self._reasoning, self._content, self._calls = "", None, []


def text_of(content: str | Sequence[ContentPart]) -> str:
    """Return the text of an item; the reasons of refusals are left out."""
    if isinstance(content, str):
        return content
    return "".join(part.text or "" for part in content if part.type != "refusal")


def new_item(kind: str, **fields: Any) -> dict[str, Any]:
    """Return an output item with a new id."""
    return {"id": f"{_PREFIXES[kind]}_{uuid.uuid4().hex}", "type": kind, **fields}


def text_part(text: str) -> dict[str, Any]:
    """Return a part of a message with text."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def refusal_part(refusal: str) -> dict[str, Any]:
    """Return a part of a message with the reason of a refusal."""
    return {"type": "refusal", "refusal": refusal}
