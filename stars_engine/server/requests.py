"""The bodies of requests: the fields of OpenAI's API that are served, and our own under `stars`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from stars_engine.server.fields import INTEGRAL, MAX_INT, Body, Penalty, StarsOptions, WholeBody

_SAMPLED = "answers are drawn segment by segment, and rewards take the place of log-probabilities"
_OPENAI_ONLY = "leave it out; it belongs to a service of OpenAI"


class StreamOptions(Body):
    """What a stream contains besides the answer."""

    include_usage: bool = Field(default=False, description="end the stream with the usage")
    include_obfuscation: bool = Field(
        default=False, description="accepted and ignored: chunks are whole segments already"
    )


class GenerationBody(WholeBody):
    """The fields that all requests for text share."""

    model: str = Field(description="name of the model, one of /v1/models")
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stream: bool = False
    metadata: dict[str, str] | None = Field(default=None, description="accepted and ignored")
    user: str | None = Field(default=None, description="accepted and ignored")
    safety_identifier: str | None = Field(default=None, description="accepted and ignored")
    prompt_cache_key: str | None = Field(default=None, description="accepted and ignored")
    service_tier: Literal["auto", "default"] | None = None
    stars: StarsOptions = StarsOptions()


class SampledBody(GenerationBody):
    """The fields that chat and text completions share."""

    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MAX_INT), INTEGRAL] | None = None
    n: Annotated[int, Field(ge=1, le=128), INTEGRAL] = 1
    seed: Annotated[int, Field(ge=0, le=MAX_INT), INTEGRAL] | None = None
    stop: str | list[str] | None = None
    stream_options: StreamOptions | None = None

    @field_validator("logit_bias")
    @classmethod
    def _of_token_ids(cls, bias: dict[str, float] | None) -> dict[str, float] | None:
        for token in bias or {}:
            if not (token.isascii() and token.isdecimal() and len(token) < 10):
                raise ValueError("keys are token ids in decimal digits")
        return bias

    @field_validator("stop")
    @classmethod
    def _few_and_not_empty(cls, stop: str | list[str] | None) -> str | list[str] | None:
        texts = [stop] if isinstance(stop, str) else stop or []
        if len(texts) > 16 or "" in texts:
            raise ValueError("allowed: up to 16 strings of at least one character")
        return stop

    @field_validator("stream_options")
    @classmethod
    def _of_a_stream(
        cls, options: StreamOptions | None, info: ValidationInfo
    ) -> StreamOptions | None:
        if options is not None and info.data.get("stream") is False:
            raise ValueError("only allowed with stream: true")
        return options


class FunctionSpec(Body):
    """A function that the model may call."""

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_.-]+$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(
        default=None, description="accepted and ignored: a grammar always enforces the schema"
    )


class ToolSpec(Body):
    """A tool; only functions are served."""

    type: Literal["function"]
    function: FunctionSpec


class FunctionName(Body):
    """The name of a function."""

    name: str


class NamedTool(Body):
    """The choice of one tool."""

    type: Literal["function"]
    function: FunctionName


class AllowedTools(Body):
    """Tools of which one may, or must, be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1)]


class ChosenTools(Body):
    """The choice of some of the tools; only these are offered to the model."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools

    @property
    def names(self) -> list[str]:
        """The names of the tools."""
        return [tool.function.name for tool in self.allowed_tools.tools]


class CalledFunction(Body):
    """A function that the assistant called, with arguments as JSON."""

    name: str
    arguments: str


class CalledTool(Body):
    """A call of an earlier turn."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    unsupported: ClassVar[dict[str, str]] = {"index": "leave it out"}


class TextPart(Body):
    """A part of a message; only text is served."""

    type: Literal["text", "refusal"]
    text: str | None = None
    refusal: str | None = None

    @model_validator(mode="after")
    def _has_its_text(self) -> TextPart:
        if self.type == "text" and self.text is None:
            raise ValueError("a part of type 'text' needs a text")
        return self


class ChatMessage(Body):
    """A message of a conversation."""

    unsupported: ClassVar[dict[str, str]] = {
        "audio": "these models read only text",
        "function_call": "use tool_calls",
        "annotations": "leave it out",
    }
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"annotations": ([],)}

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = Field(default=None, description="accepted and ignored")
    tool_calls: list[CalledTool] | None = None
    tool_call_id: str | None = None
    refusal: str | None = Field(default=None, description="accepted and ignored")
    reasoning_content: str | None = Field(default=None, description="reasoning of an answer")
    stars: dict[str, Any] | None = Field(default=None, description="accepted and ignored")


class ChatBody(SampledBody):
    """The body of a request for a chat completion."""

    unsupported: ClassVar[dict[str, str]] = {
        "audio": "these models write only text",
        "function_call": "use tool_choice",
        "functions": "use tools",
        "logprobs": f"leave it out; {_SAMPLED}",
        "modalities": "leave it out; these models write only text",
        "moderation": "use /v1/score",
        "prediction": "leave it out",
        "prompt_cache_options": _OPENAI_ONLY,
        "prompt_cache_retention": _OPENAI_ONLY,
        "reasoning_effort": "use stars.chat_template_kwargs, as the model's template has it",
        "store": "leave it out; nothing is stored",
        "top_logprobs": f"leave it out; {_SAMPLED}",
        "verbosity": "leave it out",
        "web_search_options": _OPENAI_ONLY,
    }
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "logprobs": (False,),
        "modalities": (["text"],),
        "store": (False,),
        "top_logprobs": (0,),
    }

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_INT), INTEGRAL] | None = None
    tools: list[ToolSpec] | None = None
    tool_choice: (
        Literal["none", "auto", "required"]
        | Annotated[NamedTool | ChosenTools, Field(discriminator="type")]
        | None
    ) = None
    parallel_tool_calls: bool = True
    response_format: dict[str, Any] | None = Field(
        default=None, description="text, json_object, or json_schema with a schema"
    )

    @property
    def choice(self) -> str | None:
        """The tool choice, or the name of the chosen tool."""
        match self.tool_choice:
            case NamedTool(function=function):
                return function.name
            case ChosenTools(allowed_tools=allowed):
                return allowed.mode
            case choice:
                return choice

    @property
    def allowed_names(self) -> list[str] | None:
        """The names of the tools that may be called; None for all."""
        return self.tool_choice.names if isinstance(self.tool_choice, ChosenTools) else None


class CompletionBody(SampledBody):
    """The body of a request that continues a text."""

    unsupported: ClassVar[dict[str, str]] = {
        "best_of": "leave it out; rewards choose among drafts already",
        "echo": "leave it out",
        "logprobs": f"leave it out; {_SAMPLED}",
        "suffix": "leave it out; these models write from left to right",
    }
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "best_of": (1,),
        "echo": (False,),
        "suffix": ("",),
    }

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]

    @field_validator("prompt")
    @classmethod
    def _some_prompt(cls, prompt: Any) -> Any:
        if prompt == [] or (isinstance(prompt, list) and len(prompt) > 1024):
            raise ValueError("allowed: a text, token ids, or 1 to 1024 of these")
        return prompt


class ScoreBody(WholeBody):
    """The body of a request for the rewards of given answers."""

    model: str = Field(description="name of the model, one of /v1/models")
    prompt: str | None = Field(default=None, description="the prompt, text to continue")
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = Field(
        default=None, description="the prompt, a conversation"
    )
    input: str | Annotated[list[str], Field(min_length=1, max_length=256)] = Field(
        description="the answer or answers to score"
    )
    segments: bool = Field(
        default=False, description="also score each answer after every segment of it"
    )

    @model_validator(mode="after")
    def _one_prompt(self) -> ScoreBody:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


TokenId = Annotated[int, Field(ge=0, lt=2**31), INTEGRAL]
CompletionBody.model_rebuild()
