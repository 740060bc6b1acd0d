"""The common parts of all reward configs."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from stars_engine.config.models import Checkpoint
from stars_engine.config.parts import Part
from stars_engine.schema import Schema, not_nan
from stars_engine.template_variables import check_template_kwargs

DEFAULT_MAX_RETRIES = 2

Template = Annotated[str, Field(min_length=1)]


# A placeholder stands alone; the argument of a command, as in \boxed{answer}, is text.
_PLACEHOLDER = re.compile(r"(?<![\w\\}])\{[A-Za-z_]+\}")


def check_floor(floor: float | None) -> float | None:
    """Return a floor if rewards can reach it.

    Raises:
        ValueError: The floor is infinite or nan.
    """
    if floor == math.inf:
        raise ValueError(
            "no reward reaches it, so every candidate is vetoed. Hint: give a finite number"
        )
    return not_nan(floor, "a floor is a number or None")


class Floored(Part):
    """A reward with a veto."""

    floor: float | None = Field(
        default=None,
        description="veto: a candidate with a lower reward is rejected and never forced",
        examples=[-2.0],
    )

    @field_validator("floor")
    @classmethod
    def _floor_is_no_wall(cls, floor: float | None) -> float | None:
        return check_floor(floor)

    @property
    def allowed_from(self) -> float | None:
        """The lowest reward of allowed text, if this is a guard; None if it has a scale."""
        return None


class Failing(Floored):
    """A reward that may fail, with the action to take."""

    on_failure: Literal["raise", "reject", "retry"] = Field(
        default="raise",
        description="if the reward fails: end the request with RewardError, reject the candidate "
        "(never kept, counted, logged once), or retry and then raise",
    )
    max_retries: int = Field(
        default=DEFAULT_MAX_RETRIES,
        ge=1,
        description="maximum number of retries; with on_failure='retry'",
        examples=[2],
    )

    @model_validator(mode="after")
    def _retries_act(self) -> Self:
        self._acts_when_retrying("max_retries")
        return self

    def _acts_when_retrying(self, name: str) -> None:
        # A value that equals the default may come from a file, which contains every field.
        value, default = getattr(self, name), type(self).model_fields[name].default
        if self.on_failure != "retry" and value != default:
            raise ValueError(
                f"{name}={value!r} needs on_failure='retry'; got on_failure="
                f"{self.on_failure!r}. Hint: set on_failure='retry', or leave {name} out"
            )


class ReadsText(Schema):
    """How a reward model reads prompt and answer."""

    on_overflow: Literal["truncate", "raise"] = Field(
        default="truncate",
        description="if prompt and answer exceed the model's context: truncate the prompt on the "
        "left (counted, with one warning), or fail; the answer is never truncated",
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default={},
        description="variables for the reward model's chat template, a JSON object",
        examples=[{"enable_thinking": False}],
    )

    @field_validator("chat_template_kwargs")
    @classmethod
    def _of_the_template(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        return check_template_kwargs(kwargs)

    @model_validator(mode="after")
    def _kwargs_act(self) -> Self:
        if self.chat_template_kwargs and getattr(self, "template", None) is not None:
            raise ValueError(
                "chat_template_kwargs are for the model's chat template, but `template` replaces "
                "it. Hint: give one of them"
            )
        return self


class ModelReward(ReadsText, Failing, Checkpoint):
    """A reward model that runs in this process."""

    batch_size: int = Field(
        default=16, ge=1, description="candidates scored in one forward pass", examples=[16]
    )


class Aggregates(Schema):
    """A reward that scores several positions of an answer and aggregates the scores."""

    half_life: float = Field(
        default=16.0,
        gt=0,
        allow_inf_nan=False,
        description="scores after which a weight halves, counted back from the last one; with "
        "aggregate='ema'",
        examples=[16.0],
    )

    @model_validator(mode="after")
    def _half_life_acts(self) -> Self:
        # A value that equals the default may come from a file, which contains every field.
        default = type(self).model_fields["half_life"].default
        how = getattr(self, "aggregate", None)
        if how != "ema" and self.half_life != default:
            raise ValueError(
                f"half_life={self.half_life!r} needs aggregate='ema'; got aggregate={how!r}. Hint: "
                "set aggregate='ema', or leave half_life out"
            )
        return self


class Aggregating(Aggregates, ModelReward):
    """A reward model in this process whose scores are aggregated."""


def check_template(
    text: str | None, *, may_hold: tuple[str, ...] = ("{prompt}", "{bos}")
) -> str | None:
    """Check that a template has {completion} once, and other placeholders at most once.

    Raises:
        ValueError: It does not.
    """
    if text is None:
        return None
    if text.count("{completion}") != 1:
        raise ValueError(
            "a template contains {completion} exactly once, as the placeholder for the answer. "
            "Hint: for example, '{prompt}\\n{completion}'"
        )
    for placeholder in _PLACEHOLDER.findall(text):
        if placeholder not in ("{completion}", *may_hold):
            raise ValueError(
                f"unknown placeholder {placeholder}; a template contains {{completion}} and may "
                f"contain {', '.join(may_hold)}. Hint: write {{prompt}} for the prompt"
            )
    for placeholder in may_hold:
        if text.count(placeholder) > 1:
            raise ValueError(f"a template contains {placeholder} at most once")
    if text.find("{prompt}") > text.find("{completion}"):
        raise ValueError("{prompt} must precede {completion} in a template")
    if "{bos}" in text and not text.startswith("{bos}"):
        raise ValueError("{bos}, the begin-of-text token, must be at the beginning of a template")
    return text
