"""Turn OpenAI's messages, tools and formats into those of the engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from stars_engine.config import JsonGrammar
from stars_engine.errors import ConfigError
from stars_engine.integrations import ToolNames, grammar_of_response_format, read_tool_choice
from stars_engine.messages import Chat, Message, ToolCall
from stars_engine.server.errors import ApiError, message_of
from stars_engine.server.fields import StarsOptions
from stars_engine.server.requests import ChatBody, ChatMessage, TextPart, ToolSpec
from stars_engine.server.responses.bodies import ResponsesBody

CHOICES = ("auto", "none", "required")


def chat_of(body: ChatBody) -> tuple[Chat, ToolNames]:
    """Return the conversation of a request, and the names of its tools.

    Raises:
        ConfigError: The messages, or the tools, do not fit together.
    """
    tools = body.tools or []
    names = ToolNames(tool.function.name for tool in tools)
    return new_chat(messages_of(body.messages, names), tools, names, body), names


def new_chat(
    messages: Sequence[Message],
    tools: Sequence[ToolSpec],
    names: ToolNames,
    body: ChatBody | ResponsesBody,
) -> Chat:
    """Return a conversation with tools, under the names that the model writes.

    Args:
        messages: The messages.
        tools: The tools.
        names: Their names.
        body: The request, which chooses among the tools.

    Raises:
        ApiError: The tool choice does not fit the tools.
        ConfigError: The messages, or the tools, do not fit together.
    """
    choice, allowed = body.choice, body.allowed_names
    given = [tool.function.name for tool in tools]
    named = list(allowed or ()) if choice in (None, *CHOICES) else [choice]
    for name in named:
        if name not in given:
            listed = ", ".join(map(repr, given)) or "none"
            raise _invalid_choice(f"tool_choice names {name!r}, but the tools are: {listed}")
    if choice == "required" and not tools:
        raise _invalid_choice("tool_choice 'required' needs tools")
    tools = [tool for tool in tools if allowed is None or tool.function.name in allowed]
    written = [names.tool(tool.model_dump(exclude_none=True)) for tool in tools]
    if choice == "none" and not tools:
        choice = None
    return Chat(
        messages,
        tools=written,
        tool_choice=names.choice(read_tool_choice(choice, given)),
        parallel_tool_calls=body.parallel_tool_calls,
        continue_final_message=body.stars.continue_final_message,
        chat_template_kwargs=body.stars.chat_template_kwargs or {},
    )


def messages_of(messages: Sequence[ChatMessage], names: ToolNames) -> list[Message]:
    """Return messages in the engine's form; developers speak as the system.

    Raises:
        ApiError: A message lacks its content, or has fields that its role does not have.
    """
    found = []
    for index, message in enumerate(messages):
        with naming(f"messages[{index}]"):
            found.append(_message_of(message, index, names))
    return found


@contextmanager
def naming(param: str) -> Iterator[None]:
    """Name the field of the request in errors of its values."""
    try:
        yield
    except ConfigError as error:
        raise ApiError(400, message_of(error), code="invalid_value", param=param) from error


def check_one_grammar(
    name: str, grammar: JsonGrammar | None, options: StarsOptions, chat: Chat
) -> None:
    """Check that at most one part of a request constrains the answer.

    Args:
        name: The field of the response format.
        grammar: Its grammar.
        options: May have another one.
        chat: May have tools, whose calls are constrained.

    Raises:
        ApiError: Two do.
    """
    has_tools = bool(chat.tools) and chat.tool_choice != "none"
    given = {name: grammar, "stars.grammar": options.grammar, "tools": has_tools or None}
    found = [field for field, value in given.items() if value is not None]
    if len(found) > 1:
        hint = "set tool_choice to 'none'" if "tools" in found else "give one"
        message = f"{found[0]} and {found[1]} both constrain the answer. Hint: {hint}"
        raise ApiError(400, message, code="invalid_value", param=found[0])


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
    if kind == "json_schema" and response_format.get("json_schema") is None:
        message = (
            "response_format.json_schema is missing. Hint: give an object with name and schema"
        )
        raise ApiError(400, message, code="invalid_value", param="response_format.json_schema")
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


def _invalid_choice(message: str) -> ApiError:
    return ApiError(
        400,
        f"{message}. Hint: use 'auto', or add the tool",
        code="invalid_value",
        param="tool_choice",
    )
