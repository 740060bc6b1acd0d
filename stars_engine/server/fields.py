"""What the bodies of all requests are made of, and our own fields under `stars`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from stars_engine.config.grammars import Grammar
from stars_engine.nesting import is_deeper

MAX_INT = 2**63 - 1
MAX_DEPTH = 128  # answers of `/v1/responses` repeat tools, and pydantic writes up to 255 levels


def _integral(value: Any) -> Any:
    """Return 24 for 24.0: in JSON, both are integers."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


INTEGRAL = BeforeValidator(_integral)

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


class WholeBody(Body):
    """The whole body of a request."""

    @model_validator(mode="before")
    @classmethod
    def _not_too_deep(cls, values: Any) -> Any:
        if is_deeper(values, MAX_DEPTH):
            raise ValueError(
                f"the body is nested more than {MAX_DEPTH} levels deep. Hint: flatten it; in "
                "schemas, move nested parts to $defs"
            )
        return values


def _may_be_absent(cls: type[BaseModel], name: str) -> bool:
    return name in cls.model_fields and not cls.model_fields[name].is_required()


class StarsOptions(Body):
    """What OpenAI's API has no field for."""

    top_k: Annotated[int, Field(ge=0, le=MAX_INT), INTEGRAL] | None = Field(
        default=None, description="keep the k most likely tokens; 0 keeps all"
    )
    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="drop tokens below this fraction of the likeliest one's"
    )
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = Field(
        default=None, description="above 1, tokens of prompt and answer become less likely"
    )
    min_tokens: Annotated[int, Field(ge=0, le=MAX_INT), INTEGRAL] | None = Field(
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
    max_drafted_tokens: Annotated[int, Field(ge=1, le=MAX_INT), INTEGRAL] | None = Field(
        default=None, description="drafted tokens at most"
    )
    threshold: float | None = Field(
        default=None, description="a constant threshold; needs --client-align"
    )
    beta: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="acceptance softness; needs --client-align"
    )
    segment_len: Annotated[int, Field(ge=1, le=MAX_INT), INTEGRAL] | None = Field(
        default=None, description="tokens judged together; needs --client-align"
    )
    max_attempts: Annotated[int, Field(ge=1, le=10_000), INTEGRAL] | None = Field(
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


def hints_of(cls: type[Body]) -> dict[str, str]:
    """Return the hints of all fields that are not served, by path without indexes."""
    found = dict(cls.unsupported)
    for name, field in cls.model_fields.items():
        for part in _bodies_in(field.annotation):
            found |= {f"{name}.{path}": hint for path, hint in hints_of(part).items()}
    return found


def _bodies_in(annotation: Any) -> Iterator[type[Body]]:
    if isinstance(annotation, type) and issubclass(annotation, Body):
        yield annotation
    for argument in get_args(annotation):
        yield from _bodies_in(argument)
