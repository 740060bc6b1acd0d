"""Config objects of sequence classifiers."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from stars_engine.config.models import EMBEDDED_REWARD
from stars_engine.config.rewards.common import Aggregating, ReadsText, Template, check_template


class ReadsAnswers(ReadsText):
    """A sequence classifier: which label is the reward, and how prompt and answer are read."""

    label: Annotated[int, Field(ge=0)] | str | None = Field(
        default=None,
        description="index or name of the label that is the reward; required if there are several",
        examples=["POSITIVE"],
    )
    output: Literal["logit", "probability", "log_odds"] = Field(
        default="logit",
        description="the label's logit, its probability, or log p - log(1 - p)",
    )
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


class ClassifierReward(ReadsAnswers, Aggregating):
    """A sequence classifier that reads the prompt and the answer so far."""

    kind: Literal["classifier"] = "classifier"
    aggregate: Literal["last", "mean", "ema"] = Field(
        default="last",
        description="how the scores of a causal model after each token of the answer become one "
        "reward: the last one, their mean, or their exponential moving average (see half_life)",
        examples=["mean"],
    )

    @property
    def is_embedded(self) -> bool:
        """Whether this is the reward inside the package, on the scale of its thresholds."""
        return (
            self.name_or_path == EMBEDDED_REWARD
            and self.output == "logit"
            and self.aggregate == "last"
            and self.template is None
        )
