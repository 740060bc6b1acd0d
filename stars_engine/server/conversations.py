"""Turn OpenAI's messages, tools and formats into those of the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stars_engine.config import JsonGrammar
from stars_engine.integrations import ToolNames, grammar_of_response_format, read_tool_choice
from stars_engine.messages import Chat, Message, ToolCall
from stars_engine.server.errors import ApiError
from stars_engine.server.requests import ChatBody, ChatMessage, TextPart, ToolSpec


def chat_of(body: ChatBody) -> tuple[Chat, ToolNames]:
    """Return the conversation of a request, and the names of its tools.

    Raises:
        ConfigError: The messages, or the tools, do not fit together.
    """
    tools = body.tools or []
    names = ToolNames(tool.function.name for tool in tools)
    chat = new_chat(
        messages_of(body.messages, names),
        tools,
        names,
        choice=body.tool_choice if isinstance(body.tool_choice, str | None) else named(body),
        parallel=body.parallel_tool_calls,
        continue_final_message=body.stars.continue_final_message,
        template_kwargs=body.stars.chat_template_kwargs,
    )
    return chat, names


def named(body: ChatBody) -> str:
    """Return the name of the tool that a request chooses."""
    assert body.tool_choice is not None
    assert not isinstance(body.tool_choice, str)
    return body.tool_choice.function.name


def new_chat(
    messages: Sequence[Message],
    tools: Sequence[ToolSpec],
    names: ToolNames,
    *,
    choice: str | None,
    parallel: bool = True,
    continue_final_message: bool = False,
    template_kwargs: dict[str, Any] | None = None,
) -> Chat:
    """Return a conversation with tools, under the names that the model writes."""
    given = [tool.function.name for tool in tools]
    written = [names.tool(tool.model_dump(exclude_none=True)) for tool in tools]
    if choice == "none" and not tools:
        choice = None
    return Chat(
        messages,
        tools=written,
        tool_choice=names.choice(read_tool_choice(choice, given)),
        parallel_tool_calls=parallel,
        continue_final_message=continue_final_message,
        chat_template_kwargs=template_kwargs or {},
    )


def messages_of(messages: Sequence[ChatMessage], names: ToolNames) -> list[Message]:
    """Return messages in the engine's form; developers speak as the system.

    Raises:
        ApiError: A message lacks its content.
        ConfigError: A message has fields that its role does not have.
    """
    return [_message_of(message, index, names) for index, message in enumerate(messages)]


def grammar_of(response_format: dict[str, Any] | None) -> JsonGrammar | None:
    """Return the grammar of a response format.

    Raises:
        ApiError: It is not one of OpenAI's formats.
        ConfigError: Its schema is invalid.
    """
    if response_format is None:
        return None
    kind = response_format.get("type")
    if kind not in ("text", "json_object", "json_schema"):
        message = f"response_format.type is {kind!r}; expected text, json_object or json_schema"
        raise ApiError(400, message, code="invalid_value", param="response_format.type")
    return grammar_of_response_format(response_format)


def text_of(content: str | Sequence[TextPart] | None) -> str:
    """Return the text of a content; parts that say why an answer was refused are left out."""
    if isinstance(content, str):
        return content
    return "".join(part.text or "" for part in content or () if part.type == "text")


def _message_of(message: ChatMessage, index: int, names: ToolNames) -> Message:
    role = "system" if message.role == "developer" else message.role
    if message.content is None and role != "assistant":
        raise ApiError(
            400,
            f"messages[{index}].content is null, but a message of role {message.role!r} needs a "
            "content",
            code="invalid_value",
            param=f"messages[{index}].content",
        )
    fields: dict[str, Any] = {"role": role, "content": text_of(message.content)}
    if message.tool_calls:
        fields["tool_calls"] = [
            ToolCall(
                name=names.written(call.function.name),
                arguments=call.function.arguments,
                id=call.id,
            )
            for call in message.tool_calls
        ]
    if message.reasoning_content:
        fields["reasoning"] = message.reasoning_content
    if message.tool_call_id is not None:
        fields["tool_call_id"] = message.tool_call_id
    return Message(**fields)
