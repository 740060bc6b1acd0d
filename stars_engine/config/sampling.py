"""Settings of the proposal: how tokens are sampled."""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from stars_engine.config.grammars import Grammar, as_grammar
from stars_engine.nesting import is_json
from stars_engine.schema import Schema


class SamplingParams(Schema):
    """The proposal: the base model after penalties, temperature and truncation."""

    max_tokens: int = Field(
        default=128, ge=1, description="maximum number of completion tokens", examples=[128]
    )
    temperature: float = Field(
        default=0.8,
        ge=0,
        allow_inf_nan=False,
        description="temperature of the language model; 0 is greedy decoding",
        examples=[0.8],
    )
    top_k: int | None = Field(
        default=40,
        ge=1,
        description="keep the k most likely tokens; None keeps all",
        examples=[40],
    )
    top_p: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="keep the most likely tokens whose total probability reaches this value",
        examples=[0.95],
    )
    min_p: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="drop tokens below this fraction of the most likely token's probability",
        examples=[0.05],
    )
    repetition_penalty: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="divides positive logits, and multiplies negative logits, of tokens in the "
        "prompt or completion",
        examples=[1.1],
    )
    presence_penalty: float = Field(
        default=0.0,
        allow_inf_nan=False,
        description="subtracted from the logits of tokens in the completion",
        examples=[0.5],
    )
    frequency_penalty: float = Field(
        default=0.0,
        allow_inf_nan=False,
        description="subtracted from a token's logit for each occurrence in the completion",
        examples=[0.5],
    )
    logit_bias: dict[int, float] | None = Field(
        default=None, description="added to logits; keys are token ids", examples=[{13: -5.0}]
    )
    grammar: Grammar | None = Field(
        default=None,
        description="constrains the answer to a JSON schema, a regular expression, a list of "
        "choices or a context-free grammar; other tokens are never drafted",
        examples=[{"kind": "choice", "choices": ["yes", "no"]}],
    )
    min_tokens: int = Field(
        default=0,
        ge=0,
        description="minimum number of tokens before an end-of-text token or a stop token may end "
        "the answer; stop strings count if they end after them",
        examples=[16],
    )
    stop: tuple[str, ...] = Field(
        default=(),
        description="strings that end the answer and are not part of it",
        examples=[["\n\n"]],
    )
    stop_token_ids: tuple[int, ...] = Field(
        default=(),
        description="token ids that end the answer, in addition to the model's own",
        examples=[[2]],
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        lt=2**63,
        description="the same seed gives the same text; None draws a new seed, which the result "
        "reports",
        examples=[7],
    )
    n: int = Field(default=1, ge=1, description="answers per prompt", examples=[4])
    on_overflow: Literal["raise", "clamp"] = Field(
        default="raise",
        description="if prompt and max_tokens exceed the context: raise, or lower max_tokens",
    )

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, stop: object) -> object:
        return (stop,) if isinstance(stop, str) else () if stop is None else stop

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, stop: tuple[str, ...]) -> tuple[str, ...]:
        if "" in stop:
            raise ValueError(
                "an empty stop string would end every answer before it begins. Hint: remove it"
            )
        return tuple(is_json(item, "a stop string") for item in stop)

    @field_validator("grammar", mode="before")
    @classmethod
    def _of_a_model(cls, grammar: Any) -> Any:
        return as_grammar(grammar)

    @field_validator("logit_bias")
    @classmethod
    def _no_nan(cls, bias: dict[int, float] | None) -> dict[int, float] | None:
        for token, value in (bias or {}).items():
            if math.isnan(value) or value == math.inf or token < 0:
                raise ValueError(
                    f"{{{token}: {value}}} is not a valid bias; keys are token ids from 0, values "
                    "are numbers or -inf (never draw the token)"
                )
        return bias

    @model_validator(mode="after")
    def _min_within_max(self) -> Self:
        if self.min_tokens > self.max_tokens:
            raise ValueError(
                f"min_tokens={self.min_tokens} is above max_tokens={self.max_tokens}. "
                "Hint: lower min_tokens, or raise max_tokens"
            )
        return self
