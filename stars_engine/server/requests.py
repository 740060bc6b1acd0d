"""The bodies of requests: the fields of OpenAI's API that are served, and our own under `stars`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from stars_engine.config.grammars import Grammar

MAX_INT = 2**63 - 1
_SAMPLED = "answers are drawn segment by segment, and rewards take the place of log-probabilities"
_OPENAI_ONLY = "leave it out; it belongs to a service of OpenAI"

Penalty = Annotated[float, Field(ge=-2, le=2)]


class Body(BaseModel):
    """A part of a request. Unknown fields are refused, and null means that a field is not given."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
        protected_namespaces=(),
    )

    # Fields of OpenAI's API that are not served, with hints; and values of them that ask for
    # nothing, which clients send by default.
    unsupported: ClassVar[dict[str, str]] = {}
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _without_what_asks_for_nothing(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {
            name: value
            for name, value in values.items()
            if not (
                (value is None and (name in cls.unsupported or _may_be_absent(cls, name)))
                or (name in cls.unsupported and value in cls.neutral.get(name, ()))
            )
        }


def _may_be_absent(cls: type[BaseModel], name: str) -> bool:
    return name in cls.model_fields and not cls.model_fields[name].is_required()


class StreamOptions(Body):
    """What a stream contains besides the answer."""

    include_usage: bool = Field(default=False, description="end the stream with the usage")
    include_obfuscation: bool = Field(
        default=False, description="accepted and ignored: chunks are whole segments already"
    )


class StarsOptions(Body):
    """What OpenAI's API has no field for."""

    top_k: Annotated[int, Field(ge=0, le=MAX_INT)] | None = Field(
        default=None, description="keep the k most likely tokens; 0 keeps all"
    )
    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="drop tokens below this fraction of the likeliest one's"
    )
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = Field(
        default=None, description="above 1, tokens of prompt and answer become less likely"
    )
    min_tokens: Annotated[int, Field(ge=0, le=MAX_INT)] | None = Field(
        default=None, description="tokens before the answer may end"
    )
    grammar: Grammar | None = Field(
        default=None, description="constrains the answer: kind json, regex, choice or ebnf"
    )
    reward_prompt: str | None = Field(
        default=None, description="replaces the prompt for the reward model"
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        default=None, description="variables for the chat template"
    )
    continue_final_message: bool = Field(
        default=False, description="continue the last message, which is an assistant's"
    )
    deadline_s: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="seconds after which the answer ends with what is accepted"
    )
    max_drafted_tokens: Annotated[int, Field(ge=1, le=MAX_INT)] | None = Field(
        default=None, description="drafted tokens at most"
    )
    threshold: float | None = Field(
        default=None, description="a constant threshold; needs --client-align"
    )
    beta: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="acceptance softness; needs --client-align"
    )
    segment_len: Annotated[int, Field(ge=1, le=MAX_INT)] | None = Field(
        default=None, description="tokens judged together; needs --client-align"
    )
    max_attempts: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        default=None, description="draws per segment; needs --client-align"
    )
    on_exhausted: Literal["best", "last", "stop", "raise"] | None = Field(
        default=None, description="if no draw is accepted; needs --client-align"
    )
    segments: bool = Field(
        default=False, description="return each segment with its rewards and thresholds"
    )
    rejected_text: bool = Field(
        default=False,
        description="with `segments`, return the text of rejected drafts; needs --show-rejected",
    )


class GenerationBody(Body):
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
    max_tokens: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] = 1
    seed: Annotated[int, Field(ge=0, le=MAX_INT)] | None = None
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

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> SampledBody:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only allowed with stream: true")
        return self


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
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_INT)] | None = None
    tools: list[ToolSpec] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool = True
    response_format: dict[str, Any] | None = Field(
        default=None, description="text, json_object, or json_schema with a schema"
    )


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


class ScoreBody(Body):
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


TokenId = Annotated[int, Field(ge=0, lt=2**31)]
CompletionBody.model_rebuild()
