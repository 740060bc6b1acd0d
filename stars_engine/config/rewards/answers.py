"""How reward models read answers that are not divided into steps."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from stars_engine.config.rewards.common import ReadsText, Template, check_template
from stars_engine.schema import Schema


class ReadsAnswers(ReadsText):
    """A model that reads the prompt and the answer so far: as ids, as text, with a template."""

    read: Literal["auto", "ids", "text"] = Field(
        default="auto",
        description="'ids' reads the language model's token ids without a template; 'text' reads "
        "text with the reward model's own tokenizer; 'auto' uses its template, and reads the "
        "answer as ids if both models have the same tokenizer",
        examples=["text"],
    )
    template: Template | None = Field(
        default=None,
        description="text with {completion}, {prompt} and {bos}, which replaces the tokenizer's "
        "chat template; control tokens in it are parsed, those in prompts and answers are not",
        examples=["{prompt}[SEP]{completion}"],
    )
    end_of_turn_on_partial: bool = Field(
        default=False,
        description="append what the template writes after an answer to unfinished answers",
    )
    end_of_turn_on_final: bool = Field(
        default=True,
        description="append what the template writes after an answer to finished answers",
    )

    @field_validator("template")
    @classmethod
    def _template_holds_completion(cls, template: str | None) -> str | None:
        return check_template(template)

    @model_validator(mode="after")
    def _template_is_read(self) -> Self:
        if self.read == "ids" and self.template is not None:
            raise ValueError(
                "read='ids' reads token ids without a template, so template=... has no effect. "
                "Hint: give one of the two"
            )
        return self


class _Label(Schema):
    """A separate class, so that `label` is the first field."""

    label: Annotated[int, Field(ge=0)] | str | None = Field(
        default=None,
        description="index or name of the label that is the reward; required if there are several",
        examples=["POSITIVE"],
    )
    output: Literal["logit", "probability", "log_odds"] = Field(
        default="logit",
        description="the label's logit, its probability, or log p - log(1 - p)",
    )


class ClassifiesAnswers(ReadsAnswers, _Label):
    """A sequence classifier: which label is the reward, and how prompt and answer are read."""
