"""Process reward models as config objects: one score for each step of an answer."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from stars_engine.config.rewards.common import ModelReward, Template, check_template


class Convention(NamedTuple):
    """How a process reward model wants steps marked, and where it tells their scores.

    Attributes:
        step_separator: Text between two steps; not read itself.
        marker: Text of one token, written after each step; the score is read there.
        after_marker: Text between a marker and the next step.
        head: "classifier" (labels for each token) or "tokens" (next-token logits).
        label: Which label means a good step.
        positive: The next token of a good step.
        negative: That of a bad one.
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


# As the published model cards and inference code do it.
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


class ProcessReward(ModelReward):
    """A model that scores an answer's steps; their probabilities of being good are aggregated.

    `convention` names how a published family is used; fields given beside it replace its own.
    """

    kind: Literal["process"] = "process"
    convention: Literal["qwen2.5-math-prm", "math-shepherd", "skywork-prm"] | None = Field(
        default=None,
        description="how steps are marked and scores are read, by the name of a published family",
        examples=["qwen2.5-math-prm"],
    )
    step_separator: str | None = Field(
        default=None,
        min_length=1,
        description="text between two steps of an answer; None: the convention's",
        examples=["\n\n"],
    )
    marker: str | None = Field(
        default=None,
        min_length=1,
        description="one token, written after each step, where its score is read; None: the "
        "convention's",
        examples=["<extra_0>"],
    )
    after_marker: str | None = Field(
        default=None,
        description="text between a marker and the next step; None: the convention's, or none",
        examples=["\n"],
    )
    head: Literal["classifier", "tokens"] | None = Field(
        default=None,
        description="where scores come from: a head with labels for each token (one label: "
        "sigmoid, several: softmax), or the next-token logits of `positive` and `negative`; "
        "None: the convention's",
        examples=["classifier"],
    )
    label: Annotated[int, Field(ge=0)] | str | None = Field(
        default=None,
        description="which label of the head means a good step; needed if there are several",
        examples=[1],
    )
    positive: str | None = Field(
        default=None,
        min_length=1,
        description="the token that follows a good step, of head='tokens'",
        examples=[" +"],
    )
    negative: str | None = Field(
        default=None,
        min_length=1,
        description="the token that follows a bad step, of head='tokens'",
        examples=[" -"],
    )
    template: Template | None = Field(
        default=None,
        description="text with {completion}, {prompt} and {bos} in it; None: the convention's, "
        "else the tokenizer's chat template, else prompt and answer as they are",
        examples=["{prompt} {completion}"],
    )
    aggregate: Literal["last", "min", "mean", "product"] = Field(
        default="last", description="from the probabilities of the steps to one reward"
    )
    score_unfinished: bool = Field(
        default=True,
        description="whether the last step of an unfinished answer, itself unfinished, counts; if "
        "not, it is not read until it ends",
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
                f"head are given; got {got or 'none of them'}. Known conventions: "
                f"{', '.join(CONVENTIONS)}"
            )
        words = [name for name in ("positive", "negative") if getattr(given, name) is not None]
        if given.head == "tokens" and (len(words) < 2 or given.positive == given.negative):
            raise ValueError(
                "head='tokens' needs two different tokens, positive and negative; got "
                f"positive={given.positive!r}, negative={given.negative!r}"
            )
        if given.head == "tokens" and given.label is not None:
            raise ValueError(f"label={given.label!r} belongs to head='classifier'; leave it out")
        if given.head == "classifier" and words:
            raise ValueError(f"{' and '.join(words)} belong to head='tokens'; leave them out")
        return self

    def resolved(self) -> Convention:
        """Return the convention with this object's own fields in place of its."""
        base = CONVENTIONS[self.convention] if self.convention else Convention(after_marker="")
        if self.head is not None and self.head != base.head:
            base = base._replace(label=None, positive=None, negative=None)  # of the other head
        own = {name: getattr(self, name) for name in Convention._fields}
        return base._replace(**{name: value for name, value in own.items() if value is not None})
