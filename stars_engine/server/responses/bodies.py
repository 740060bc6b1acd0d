"""The body of a request for a response."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from stars_engine.server.fields import INTEGRAL, MAX_INT, Body
from stars_engine.server.requests import FunctionSpec, GenerationBody, ToolSpec

_NOT_STORED = "send the whole conversation as input; nothing is stored"
_OPENAI_ONLY = "leave it out; it belongs to a service of OpenAI"


class ContentPart(Body):
    """A part of an item; only text is served."""

    unsupported: ClassVar[dict[str, str]] = {
        "annotations": "leave it out",
        "logprobs": "leave it out",
    }
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"annotations": ([],), "logprobs": ([],)}

    type: Literal["input_text", "output_text", "text", "refusal"]
    text: str | None = None
    refusal: str | None = None


class MessageItem(Body):
    """A message."""

    unsupported: ClassVar[dict[str, str]] = {"phase": "leave it out"}
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"phase": ("final_answer", "commentary")}

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[ContentPart]
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class CallItem(Body):
    """A function that the assistant called."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class OutputItem(Body):
    """What a function returned."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | list[ContentPart]
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class ReasoningText(Body):
    """A part of a reasoning."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningItem(Body):
    """The reasoning before an answer."""

    unsupported: ClassVar[dict[str, str]] = {"encrypted_content": "send the content itself"}

    type: Literal["reasoning"]
    summary: list[ReasoningText] = Field(default_factory=list)
    content: list[ReasoningText] | None = None
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


def _kind_of(item: Any) -> Any:
    """Return the type of an item; messages may omit it."""
    given = item.get("type") if isinstance(item, Mapping) else getattr(item, "type", None)
    return given or "message"


InputItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[OutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_kind_of),
]


class ResponseTool(FunctionSpec):
    """A tool; only functions are served."""

    unsupported: ClassVar[dict[str, str]] = {"defer_loading": "leave it out"}
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"defer_loading": (False,)}

    type: Literal["function"]


class ChosenFunction(Body):
    """The choice of one function."""

    type: Literal["function"]
    name: str


class AllowedFunctions(Body):
    """The choice of some of the tools; only these are offered to the model."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[ChosenFunction], Field(min_length=1)]


class TextFormat(Body):
    """The format of the answer's text."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _of_a_schema(self) -> TextFormat:
        if self.type == "json_schema" and (self.name is None or self.schema_ is None):
            raise ValueError("a format of type 'json_schema' needs a name and a schema")
        return self


class TextOptions(Body):
    """The text of the answer."""

    unsupported: ClassVar[dict[str, str]] = {"verbosity": "leave it out"}
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"verbosity": ("medium",)}

    format: TextFormat | None = None


class ResponsesBody(GenerationBody):
    """The body of a request for a response."""

    unsupported: ClassVar[dict[str, str]] = {
        "access_programs": _OPENAI_ONLY,
        "background": "leave it out; requests are answered at once",
        "background_options": "leave it out; requests are answered at once",
        "context_management": "shorten the input yourself",
        "conversation": _NOT_STORED,
        "image": "leave it out; these models read and write only text",
        "include": "leave it out",
        "max_tool_calls": "leave it out; the server runs no tools",
        "moderation": "use /v1/score",
        "previous_response_id": _NOT_STORED,
        "prompt": _OPENAI_ONLY,
        "prompt_cache_options": _OPENAI_ONLY,
        "prompt_cache_retention": _OPENAI_ONLY,
        "reasoning": "use stars.chat_template_kwargs, as the model's template has it",
        "stream_options": "leave it out",
        "top_logprobs": "leave it out; rewards take the place of log-probabilities",
        "truncation": "leave it out; a prompt that is too long is an error",
    }
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "background": (False,),
        "include": ([],),
        "stream_options": ({"include_obfuscation": False}, {"include_obfuscation": True}),
        "top_logprobs": (0,),
        "truncation": ("disabled",),
    }

    input: str | Annotated[list[InputItem], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=MAX_INT), INTEGRAL] | None = None
    parallel_tool_calls: bool = True
    text: TextOptions | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: (
        Literal["none", "auto", "required"]
        | Annotated[ChosenFunction | AllowedFunctions, Field(discriminator="type")]
        | None
    ) = None
    store: bool | None = Field(default=None, description="accepted and ignored: nothing is stored")

    @property
    def tool_specs(self) -> list[ToolSpec]:
        """The tools, as chat completions write them."""
        return [
            ToolSpec(
                type="function",
                function=FunctionSpec(**tool.model_dump(exclude={"type"})),
            )
            for tool in self.tools or []
        ]

    @property
    def choice(self) -> str | None:
        """The tool choice, or the name of the chosen tool."""
        match self.tool_choice:
            case ChosenFunction(name=name):
                return name
            case AllowedFunctions(mode=mode):
                return mode
            case choice:
                return choice

    @property
    def allowed_names(self) -> list[str] | None:
        """The names of the tools that may be called; None for all."""
        choice = self.tool_choice
        return [t.name for t in choice.tools] if isinstance(choice, AllowedFunctions) else None

    @property
    def response_format(self) -> dict[str, Any] | None:
        """The format of the answer, as chat completions write it."""
        wanted = None if self.text is None else self.text.format
        if wanted is None:
            return None
        if wanted.type != "json_schema":
            return {"type": wanted.type}
        schema = {"name": wanted.name, "schema": wanted.schema_, "strict": wanted.strict}
        given = {name: value for name, value in schema.items() if value is not None}
        return {"type": "json_schema", "json_schema": given}
