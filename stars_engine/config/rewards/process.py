"""Config objects of process reward models, which score each step of an answer."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from stars_engine.config.rewards.common import (
    Aggregates,
    Aggregating,
    ReadsText,
    Template,
    check_template,
)


class Convention(NamedTuple):
    """How steps are marked for a process reward model, and where their scores are read.

    Attributes:
        step_separator: Text between two steps; the model does not read it.
        marker: Text of one token after each step, where the score is read.
        after_marker: Text between a marker and the next step.
        head: "classifier" (labels for each token) or "tokens" (next-token logits).
        label: The label of a good step.
        positive: The next token after a good step.
        negative: The next token after a bad step.
        template: Text around prompt and answer; None for the tokenizer's chat template.
    """

    step_separator: str | None = None
    marker: str | None = None
    after_marker: str | None = None
    head: Literal["classifier", "tokens"] | None = None
    label: int | str | None = None
    positive: str | None = None
    negative: str | None = None
    template: str | None = None


# From the published model cards and inference code.
CONVENTIONS = {
    "qwen2.5-math-prm": Convention(
        step_separator="\n\n", marker="<extra_0>", after_marker="", head="classifier", label=1
    ),
    "math-shepherd": Convention(
        step_separator="\n",
        marker=" ки",
        after_marker="\n",
        head="tokens",
        positive=" +",
        negative=" -",
        template="{prompt} {completion}",
    ),
    "skywork-prm": Convention(
        step_separator="\n",
        marker="\n",
        after_marker="",
        head="classifier",
        template="{bos}{prompt}\n{completion}",
    ),
}


class ScoresSteps(Aggregates, ReadsText):
    """How an answer is split into steps, how they are marked, and where their scores are read.

    `convention` names the settings of a published model family; explicit fields override them.
    """

    convention: Literal["qwen2.5-math-prm", "math-shepherd", "skywork-prm"] | None = Field(
        default=None,
        description="published model family whose settings for steps and scores apply",
        examples=["qwen2.5-math-prm"],
    )
    step_separator: str | None = Field(
        default=None,
        min_length=1,
        description="text between two steps of an answer; None uses the convention's",
        examples=["\n\n"],
    )
    marker: str | None = Field(
        default=None,
        min_length=1,
        description="one token after each step, where its score is read; None uses the "
        "convention's",
        examples=["<extra_0>"],
    )
    after_marker: str | None = Field(
        default=None,
        description="text between a marker and the next step; None uses the convention's, or no "
        "text",
        examples=["\n"],
    )
    head: Literal["classifier", "tokens"] | None = Field(
        default=None,
        description="source of the scores: a head with labels for each token (one label: sigmoid, "
        "several: softmax), or the next-token logits of `positive` and `negative`; None uses the "
        "convention's",
        examples=["classifier"],
    )
    label: Annotated[int, Field(ge=0)] | str | None = Field(
        default=None,
        description="label of the head for a good step; required if there are several",
        examples=[1],
    )
    positive: str | None = Field(
        default=None,
        min_length=1,
        description="the token that follows a good step, for head='tokens'",
        examples=[" +"],
    )
    negative: str | None = Field(
        default=None,
        min_length=1,
        description="the token that follows a bad step, for head='tokens'",
        examples=[" -"],
    )
    template: Template | None = Field(
        default=None,
        description="text with {completion}, {prompt} and {bos}; None uses the convention's, else "
        "the tokenizer's chat template, else prompt and answer without a template",
        examples=["{prompt} {completion}"],
    )
    aggregate: Literal["last", "min", "mean", "ema", "product"] = Field(
        default="last",
        description="how the probabilities of the steps become one reward; 'ema' is their "
        "exponential moving average (see half_life)",
    )
    score_unfinished: bool = Field(
        default=True,
        description="score the unfinished last step of an unfinished answer; if false, the model "
        "does not read it until it ends",
    )

    @field_validator("template")
    @classmethod
    def _template_holds_completion(cls, template: str | None) -> str | None:
        return check_template(template)

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        given = self.resolved()
        missing = [n for n in ("step_separator", "marker", "head") if getattr(given, n) is None]
        if missing:
            found = [n for n in ("step_separator", "marker", "head") if n not in missing]
            got = ", ".join(f"{name}={getattr(given, name)!r}" for name in found)
            raise ValueError(
                f"{', '.join(missing)} missing: without a convention, step_separator, marker and "
                f"head are required; got {got or 'none of them'}. Known conventions: "
                f"{', '.join(CONVENTIONS)}. Hint: set convention=..., or these fields"
            )
        words = [name for name in ("positive", "negative") if getattr(given, name) is not None]
        if given.head == "tokens" and (len(words) < 2 or given.positive == given.negative):
            raise ValueError(
                "head='tokens' needs two different tokens, positive and negative; got "
                f"positive={given.positive!r}, negative={given.negative!r}. Hint: set both"
            )
        if given.head == "tokens" and given.label is not None:
            raise ValueError(f"label={given.label!r} is for head='classifier'. Hint: leave it out")
        if given.head == "classifier" and words:
            raise ValueError(f"{' and '.join(words)} are for head='tokens'. Hint: leave them out")
        return self

    def resolved(self) -> Convention:
        """Return the convention with the explicit fields of this object."""
        base = CONVENTIONS[self.convention] if self.convention else Convention(after_marker="")
        if self.head is not None and self.head != base.head:
            base = base._replace(label=None, positive=None, negative=None)  # for the other head
        own = {name: getattr(self, name) for name in Convention._fields}
        return base._replace(**{name: value for name, value in own.items() if value is not None})


class ProcessReward(ScoresSteps, Aggregating):
    """A model that scores the steps of an answer; the probabilities of good steps are aggregated.

    `convention` names the settings of a published model family; explicit fields override them.
    """

    kind: Literal["process"] = "process"
