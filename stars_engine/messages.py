"""Conversations: messages, tools, tool calls and their results."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from stars_engine.nesting import is_json
from stars_engine.schema import Schema
from stars_engine.schema_formats.dialects import as_json_schema
from stars_engine.schema_formats.library_types import without_reasons
from stars_engine.schema_formats.listings import lists_tools, tool_items
from stars_engine.schema_formats.parts import ANNOTATIONS, KEYWORDS, rooted
from stars_engine.schema_formats.pydantic_models import schema_of_model
from stars_engine.schema_formats.wrappings import NamedSchema, is_wrapped, read_tools
from stars_engine.template_variables import check_template_kwargs

_NAME = r"[a-zA-Z0-9_.-]{1,64}"
CHOICES = ("auto", "none", "required")


class ToolCall(Schema):
    """A call of a tool by the assistant."""

    name: str = Field(min_length=1, description="name of the tool", examples=["weather"])
    arguments: dict[str, Any] = Field(
        default={}, description="arguments by name", examples=[{"city": "Oslo"}]
    )
    id: str = Field(default="", description="id that the result refers to")

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        return _without_function(value)

    @field_validator("arguments", mode="before")
    @classmethod
    def _parsed(cls, arguments: Any) -> Any:
        """Accept a JSON string, as in the OpenAI format; null and "" mean no arguments."""
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments.strip() or "{}")
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"the arguments are not valid JSON: {error}. Hint: give a dict"
                ) from None
        return is_json({} if arguments is None else arguments, "arguments")

    def __hash__(self) -> int:
        return hash((self.name, self.id))  # dictionaries of arguments are not hashable


class InvalidToolCall(Schema):
    """An invalid tool call that the model wrote."""

    text: str = Field(description="text of the call, as the model wrote it")
    error: str = Field(description="what is wrong with the call")
    name: str | None = Field(default=None, description="name of the tool, if known")


class Tool(Schema):
    """A tool that the assistant may call."""

    name: str = Field(description="name of the tool", examples=["weather"])
    description: str = Field(default="", description="purpose of the tool; the model reads it")
    parameters: dict[str, Any] = Field(
        default={"type": "object", "properties": {}},
        description="JSON schema of the arguments, an object",
        examples=[{"type": "object", "properties": {"city": {"type": "string"}}}],
    )
    strict: bool = Field(
        default=True,
        description="refuse parameters that no grammar expresses; if false, check complete calls",
    )

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        if isinstance(value, type) and hasattr(value, "model_json_schema"):
            schema = rooted(schema_of_model(value))
            about = schema.pop("description", "")
            return {"name": value.__name__, "description": about, "parameters": schema}
        if isinstance(value, NamedSchema):
            return value.as_tool()["function"]
        value = _without_function(value)
        if not isinstance(value, Mapping) or not is_wrapped(value):
            return value
        tools = [tool.as_tool()["function"] for tool in read_tools(value)]
        if len(tools) != 1:
            raise ValueError(
                f"this dictionary describes {len(tools)} tools; expected 1. Hint: pass each tool "
                "as its own item"
            )
        return tools[0]

    def described(self) -> dict[str, Any]:
        """Return what the model reads of the tool."""
        about = {"name": self.name, "description": self.description}
        return {**about, "parameters": without_reasons(self.parameters)}

    @field_validator("name")
    @classmethod
    def _can_be_written(cls, name: str) -> str:
        if not re.fullmatch(_NAME, name):
            raise ValueError(
                "allowed: 1 to 64 letters, digits, '_', '-' and '.'. Hint: rename the tool"
            )
        return name

    @field_validator("parameters", mode="before")
    @classmethod
    def _of_an_object(cls, schema: Any) -> Any:
        if schema is None:
            return {"type": "object", "properties": {}}
        if isinstance(schema, Mapping):
            if schema and not schema.keys() & (KEYWORDS | ANNOTATIONS):
                raise ValueError(
                    "it has no keyword of JSON Schema. Hint: use {'type': 'object', 'properties': "
                    "{...}}"
                )
            schema = rooted(as_json_schema(schema))
        if isinstance(schema, Mapping) and schema.get("type", "object") != "object":
            raise ValueError(
                f"arguments are an object, but the type of this schema is {schema['type']!r}. "
                "Hint: use {'type': 'object', 'properties': {'value': ...}}"
            )
        return is_json(schema, "a schema")

    def __hash__(self) -> int:
        return hash((self.name, self.description))


class Message(Schema):
    """A message of a conversation."""

    role: Literal["system", "user", "assistant", "tool"] = Field(
        description="author of the message", examples=["user"]
    )
    content: str = Field(description="text of the message", examples=["Hello!"])
    reasoning: str | None = Field(
        default=None, description="reasoning of the assistant before its answer"
    )
    tool_calls: tuple[ToolCall, ...] = Field(
        default=(), description="valid tool calls of the assistant"
    )
    invalid_tool_calls: tuple[InvalidToolCall, ...] = Field(
        default=(), description="invalid tool calls of the assistant"
    )
    tool_call_id: str | None = Field(
        default=None, description="id of the call whose result a tool message holds"
    )
    name: str | None = Field(default=None, description="name of the tool of a tool message")

    @model_validator(mode="before")
    @classmethod
    def _may_only_call(cls, value: Any) -> Any:
        """Allow an assistant message with calls to have no content; drop fields that are None."""
        if not isinstance(value, Mapping):
            return value
        given = {name: part for name, part in value.items() if part is not None}
        return {"content": "", **given} if given.get("tool_calls") else given

    @field_validator("content", mode="before")
    @classmethod
    def _text_of_parts(cls, content: Any) -> Any:
        if not isinstance(content, list | tuple):
            return content
        return "".join(map(_text_of, content))

    @model_validator(mode="after")
    def _roles_fit(self) -> Message:
        own = {"reasoning", "tool_calls", "invalid_tool_calls"}
        for role, names in (("assistant", own), ("tool", {"tool_call_id", "name"})):
            for name in sorted(names):
                if getattr(self, name) and self.role != role:
                    raise ValueError(
                        f"{name} needs the role {role!r}, but the role is {self.role!r}. Hint: set "
                        f"role={role!r}, or remove {name}"
                    )
        return self


class Chat(Schema):
    """A conversation, rendered by the model's own chat template."""

    messages: tuple[Message, ...] = Field(
        min_length=1,
        description="the messages so far",
        examples=[[{"role": "user", "content": "Hi"}]],
    )
    tools: tuple[Tool, ...] = Field(
        default=(),
        description="tools that the assistant may call; JSON schemas or pydantic models",
        examples=[[{"name": "weather", "parameters": {"type": "object"}}]],
    )
    tool_choice: str = Field(
        default="auto",
        description="'auto': text or calls; 'none': text; 'required' or 'any': at least one call; "
        "the name of a tool: one call of this tool",
    )
    parallel_tool_calls: bool = Field(
        default=True,
        description="allow several calls in one answer, if the model's format supports them",
    )
    constrain_tools: bool = Field(
        default=True,
        description="constrain calls with a grammar to the tools and to valid arguments; if false, "
        "calls are not constrained, and invalid ones are returned as invalid_tool_calls",
    )
    compact_calls: bool = Field(
        default=False,
        description="allow no spaces between the parts of a call's arguments; otherwise, a space "
        "follows each comma and colon",
    )
    continue_final_message: bool = Field(
        default=False, description="continue the last message, which is an assistant prefill"
    )
    answer_schema: dict[str, Any] | None = Field(
        default=None, description="JSON schema of the answer, which the system message describes"
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default={},
        description="variables for the chat template, a JSON object; they take precedence over "
        "those of the config",
        examples=[{"enable_thinking": False}],
    )

    def __init__(self, messages: Any = (), /, **values: Any) -> None:
        super().__init__(**({"messages": messages} | values))

    def __hash__(self) -> int:
        return hash((self.messages, self.tools, self.tool_choice))

    @field_validator("chat_template_kwargs")
    @classmethod
    def _of_the_template(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        return check_template_kwargs(kwargs)

    @field_validator("tool_choice", mode="before")
    @classmethod
    def _named(cls, choice: Any) -> Any:
        """Accept the OpenAI format."""
        if isinstance(choice, Mapping) and isinstance(choice.get("function"), Mapping):
            return choice["function"].get("name")
        return "auto" if choice is None else choice

    @field_validator("tools", mode="before")
    @classmethod
    def _listed(cls, tools: Any) -> Any:
        """Accept dictionaries of several tools, such as those that an MCP server lists."""
        if isinstance(tools, str) or not isinstance(tools, Iterable):
            return tools
        return [
            part
            for item in tool_items(tools)
            for part in (read_tools(item) if lists_tools(item) else [item])
        ]

    @field_validator("tools")
    @classmethod
    def _named_uniquely(cls, tools: tuple[Tool, ...]) -> tuple[Tool, ...]:
        counts = Counter(tool.name for tool in tools)
        for name, count in counts.items():
            if count > 1:
                raise ValueError(f"two tools are called {name!r}. Hint: rename one of them")
            if name in (*CHOICES, "any"):
                raise ValueError(
                    f"no tool can be called {name!r}, which is a tool_choice. Hint: rename the tool"
                )
        return tools

    @model_validator(mode="after")
    def _fits(self) -> Chat:
        names = [tool.name for tool in self.tools]
        if self.tool_choice not in (*CHOICES, "any", *names):
            allowed = ", ".join(map(repr, (*CHOICES, "any", *names)))
            raise ValueError(
                f"unknown tool_choice {self.tool_choice!r}; expected one of {allowed}. Hint: use "
                "one of these, or add a tool of this name"
            )
        if self.must_call and not self.tools:
            raise ValueError(f"tool_choice {self.tool_choice!r} needs tools. Hint: add tools=[...]")
        if self.must_call and not self.constrain_tools:
            raise ValueError(
                f"tool_choice {self.tool_choice!r} needs a grammar, but constrain_tools is False. "
                "Hint: remove one of them"
            )
        if self.continue_final_message:
            self._check_prefill(self.messages[-1])
        return self

    @property
    def must_call(self) -> bool:
        """Whether the answer must contain a call."""
        return self.tool_choice not in ("auto", "none")

    @property
    def callable_tools(self) -> tuple[Tool, ...]:
        """The tools that the answer may call."""
        if self.tool_choice == "none":
            return ()
        if self.tool_choice in (*CHOICES, "any"):
            return self.tools
        return tuple(tool for tool in self.tools if tool.name == self.tool_choice)

    def _check_prefill(self, last: Message) -> None:
        other = last.tool_calls or last.invalid_tool_calls or last.reasoning
        if last.role != "assistant" or other or not last.content:
            found = "is not plain text" if last.role == "assistant" else f"has role {last.role!r}"
            raise ValueError(
                "continue_final_message continues an assistant message, but the last message "
                f"{found}. Hint: end with a message of role 'assistant' that has only "
                "`content` (which may include reasoning)"
            )
        if len(self.messages) == 1:
            raise ValueError(
                "continue_final_message needs a message before the assistant's. Hint: add a "
                "message of role 'user' before it"
            )
        if self.must_call:
            raise ValueError(
                "an answer that continues text cannot begin with a tool call, but tool_choice is "
                f"{self.tool_choice!r}. Hint: use tool_choice='auto' or 'none', or remove "
                "continue_final_message"
            )


def _without_function(value: Any) -> Any:
    """Unwrap a tool or a call from the envelope of the OpenAI format."""
    if isinstance(value, Mapping) and isinstance(value.get("function"), Mapping):
        rest = {name: value[name] for name in value if name not in ("type", "function")}
        function = value["function"].items()
        return {**rest, **{key: part for key, part in function if (key, part) != ("strict", None)}}
    return value


def _text_of(part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise ValueError(
        f"a part of the content has type {kind!r}, but these models read only text. Hint: remove "
        "images, audio and files, or describe them as text"
    )
