"""Sequence classifiers as config objects."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from stars_engine.config.models import EMBEDDED_REWARD
from stars_engine.config.rewards.common import ModelReward, Template, check_template


class ClassifierReward(ModelReward):
    """A sequence classifier that reads the prompt and the whole answer so far."""

    kind: Literal["classifier"] = "classifier"
    label: Annotated[int, Field(ge=0)] | str | None = Field(
        default=None,
        description="which logit, by index or label name; needed if there are several",
        examples=["POSITIVE"],
    )
    output: Literal["logit", "probability", "log_odds"] = Field(
        default="logit",
        description="the label's logit, its probability, or log p - log(1 - p)",
    )
    read: Literal["auto", "ids", "text"] = Field(
        default="auto",
        description="feed the language model's token ids as they are, without any template, or "
        "text through the reward model's own tokenizer; auto: its own template, and the answer "
        "as ids if the two tokenizers are the same",
        examples=["text"],
    )
    template: Template | None = Field(
        default=None,
        description="text with {completion}, {prompt} and {bos} in it, in place of the tokenizer's "
        "chat template; control tokens in it are parsed, those in prompts and answers are not",
        examples=["{prompt}[SEP]{completion}"],
    )
    end_of_turn_on_partial: bool = Field(
        default=False,
        description="whether what the template writes after an answer follows an unfinished one",
    )
    end_of_turn_on_final: bool = Field(
        default=True,
        description="whether what the template writes after an answer follows a finished one",
    )

    @field_validator("template")
    @classmethod
    def _template_holds_completion(cls, template: str | None) -> str | None:
        return check_template(template)

    @model_validator(mode="after")
    def _template_is_read(self) -> Self:
        if self.read == "ids" and self.template is not None:
            raise ValueError(
                "read='ids' feeds token ids without a template, so template=... would be ignored; "
                "give one of the two"
            )
        return self

    @property
    def is_embedded(self) -> bool:
        """True for the reward inside the package, on the scale of its thresholds."""
        return (
            self.name_or_path == EMBEDDED_REWARD
            and self.output == "logit"
            and self.template is None
        )
