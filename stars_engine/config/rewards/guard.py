"""Config objects of guards: models that say whether text is allowed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from stars_engine.config.loading import check_values
from stars_engine.config.parts import objects_in_keywords
from stars_engine.config.rewards.answers import ReadsAnswers
from stars_engine.config.rewards.common import Aggregating, Failing
from stars_engine.files.config_files import find_object
from stars_engine.problems import Problem
from stars_engine.redaction import secrets_in
from stars_engine.schema import Schema

Activation = Literal["relu", "gelu", "silu", "tanh"]
ACTIVATIONS: tuple[Activation, ...] = ("relu", "gelu", "silu", "tanh")


class GuardReward(ReadsAnswers, Aggregating):
    """A token guard: a causal model that labels each token of the answer as allowed or not.

    The reward is the probability of the allowed labels. Checkpoints of Qwen3Guard-Stream need no
    further fields; the code that comes with them does not run.
    """

    kind: Literal["guard"] = "guard"
    allowed: tuple[str, ...] = Field(
        default=("Safe",),
        min_length=1,
        description="names of the labels that are allowed; the reward is their probability",
        examples=[["Safe", "Controversial"]],
    )
    head: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="the layers of the head in order: names of weights in the checkpoint, without "
        f"'.weight', and activations ({', '.join(ACTIVATIONS)}); None uses the head for responses "
        "of Qwen3Guard-Stream, or that of a token classification model",
        examples=[["score.0", "relu", "score.2"]],
    )
    labels: tuple[str, ...] | None = Field(
        default=None,
        min_length=2,
        description="names of the head's labels in order; None uses those in the checkpoint's "
        "config",
        examples=[["Safe", "Unsafe"]],
    )
    output: Literal["probability", "log_odds"] = Field(
        default="probability",
        description="the probability p of the allowed labels, or log p - log(1 - p)",
    )
    aggregate: Literal["last", "min", "mean", "ema"] = Field(
        default="last",
        description="how the values after each token of the answer become one reward: the last "
        "one, which is the guard's verdict on the answer so far, the lowest, their mean, or their "
        "exponential moving average (see half_life)",
        examples=["min"],
    )
    end_of_turn_on_final: bool = Field(
        default=False,
        description="append what the template writes after an answer to finished answers, and "
        "read the value there too",
    )

    @model_validator(mode="after")
    def _labels_fit(self) -> Self:
        labels = self.labels
        if labels is not None and len(set(labels)) < len(labels):
            raise ValueError(f"labels={labels!r} has a name twice. Hint: name each label once")
        if labels is not None:
            check_allowed(self.allowed, labels)
        return self

    @field_validator("head")
    @classmethod
    def _head_ends_with_weights(cls, head: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if head is not None and head[-1] in ACTIVATIONS:
            raise ValueError(
                f"the last layer computes the labels, and {head[-1]!r} is an activation. Hint: end "
                "with the name of a linear layer"
            )
        return head

    @property
    def allowed_from(self) -> float:
        """The lowest reward of allowed text, which is more likely allowed than not."""
        return 0.5 if self.output == "probability" else 0.0


def check_allowed(allowed: tuple[str, ...], labels: tuple[str, ...]) -> None:
    """Check that a guard with these labels can refuse text.

    Raises:
        ValueError: An allowed label does not exist, or all labels are allowed.
    """
    unknown = [name for name in allowed if name not in labels]
    if unknown:
        raise ValueError(
            f"allowed={unknown[0]!r} is not a label; the labels are {', '.join(labels)}. Hint: "
            "set `allowed` to those that the answer may have"
        )
    if set(allowed) == set(labels):
        raise ValueError(
            f"all labels are allowed ({', '.join(labels)}), so that the guard refuses nothing. "
            "Hint: leave out of `allowed` what it is to refuse"
        )


class _Guardrail(Schema):
    """A separate class, so that `guardrail` is the first field."""

    guardrail: str = Field(
        min_length=1,
        description="name of a guardrail of the library any-guardrail",
        examples=["duo_guard"],
    )


class GuardrailReward(Failing, _Guardrail):
    """A guardrail of the library any-guardrail: 1 if it allows the answer so far, else 0."""

    kind: Literal["guardrail"] = "guardrail"
    guardrail_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="keywords with which the guardrail is made, such as model_id, policy or "
        "threshold; keys of services are read from the environment",
        examples=[{"threshold": 0.8}],
    )
    validate_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="keywords of each call of `validate`; a value '{prompt}' stands for the text "
        "of the prompt",
        examples=[{"context": "{prompt}"}],
    )
    judges: Literal["auto", "answer", "conversation"] = Field(
        default="auto",
        description="what the guardrail reads: the answer alone, or the prompt and the answer; "
        "'auto' gives it the prompt too if it takes a prompt and a response",
    )
    output: Literal["valid", "score"] = Field(
        default="valid",
        description="the reward: 1 or 0 by the guardrail's verdict, or 1 - its risk score",
    )
    max_concurrency: int = Field(
        default=1,
        ge=1,
        description="maximum number of concurrent calls, each on its own thread; services can take "
        "more than local models",
        examples=[8],
    )
    timeout_s: Annotated[float, Field(gt=0)] | None = Field(
        default=60.0,
        description="seconds after which a call has failed; None means no limit",
        examples=[5.0],
    )

    @field_validator("guardrail_kwargs", "validate_kwargs")
    @classmethod
    def _no_secrets(cls, keywords: dict[str, Any]) -> dict[str, Any]:
        if any(secrets_in(check_values(keywords))):
            raise ValueError(
                "it holds a secret, which configs of guardrails do not keep. Hint: set the "
                "environment variable that the guardrail reads"
            )
        return keywords

    @property
    def allowed_from(self) -> float:
        """The lowest reward of allowed text."""
        return 0.5

    @property
    def live_fields(self) -> frozenset[str]:
        """See `Part`."""
        fields = ("guardrail_kwargs", "validate_kwargs")
        return frozenset(name for name in fields if find_object(getattr(self, name)) is not None)

    @property
    def shown_name(self) -> str:
        """See `Part`."""
        return self.guardrail

    def unwritable(self) -> Iterator[Problem]:
        """See `Part`."""
        yield from objects_in_keywords(self, *sorted(self.live_fields))
