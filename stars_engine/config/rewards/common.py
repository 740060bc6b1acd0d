"""What the config objects of all rewards have in common."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from stars_engine.config.models import Checkpoint
from stars_engine.messages import check_template_kwargs
from stars_engine.schema import Schema, not_nan

DEFAULT_MAX_RETRIES = 2

Template = Annotated[str, Field(min_length=1)]


# A place stands by itself: what a command takes, as in \boxed{answer}, is text.
_PLACE = re.compile(r"(?<![\w\\}])\{[A-Za-z_]+\}")


def check_floor(floor: float | None) -> float | None:
    """Return a floor that some reward may reach.

    Raises:
        ValueError: There is none.
    """
    if floor == math.inf:
        raise ValueError("no reward reaches it, so that every candidate is vetoed; a finite number")
    return not_nan(floor, "a floor is a number or None")


class Floored(Schema):
    """A reward with a veto."""

    floor: float | None = Field(
        default=None,
        description="veto: a candidate whose reward is below is rejected and never forced",
        examples=[-2.0],
    )

    @field_validator("floor")
    @classmethod
    def _floor_is_no_wall(cls, floor: float | None) -> float | None:
        return check_floor(floor)


class Failing(Floored):
    """A reward that may fail, and what then happens."""

    on_failure: Literal["raise", "reject", "retry"] = Field(
        default="raise",
        description="when the reward fails: end the request with RewardError, reject the candidate "
        "(never kept, counted, logged once), or ask again and then raise",
    )
    max_retries: int = Field(
        default=DEFAULT_MAX_RETRIES,
        ge=1,
        description="times a failed reward is asked again; with on_failure='retry'",
        examples=[2],
    )

    @model_validator(mode="after")
    def _retries_act(self) -> Self:
        self._acts_when_retrying("max_retries")
        return self

    def _acts_when_retrying(self, name: str) -> None:
        # What equals the default may come from a file, which holds every field.
        value, default = getattr(self, name), type(self).model_fields[name].default
        if self.on_failure != "retry" and value != default:
            raise ValueError(
                f"{name}={value!r} acts with on_failure='retry' only; got on_failure="
                f"{self.on_failure!r}. Set that, or leave {name} out"
            )


class ModelReward(Failing, Checkpoint):
    """A reward that is a model, run in this process."""

    batch_size: int = Field(
        default=16, ge=1, description="candidates scored in one forward pass", examples=[16]
    )
    on_overflow: Literal["truncate", "raise"] = Field(
        default="truncate",
        description="if prompt and answer exceed the model's context: cut the prompt from the left "
        "(counted, warned of once), or fail; the answer is never cut",
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default={},
        description="variables for the reward model's own chat template, a JSON object",
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
                "chat_template_kwargs are for the model's own chat template, which `template` "
                "takes the place of; give one of them"
            )
        return self


def check_template(
    text: str | None, *, may_hold: tuple[str, ...] = ("{prompt}", "{bos}")
) -> str | None:
    """Check that a template holds the completion once, and other places at most once.

    Raises:
        ValueError: It does not.
    """
    if text is None:
        return None
    if text.count("{completion}") != 1:
        raise ValueError(
            "a template holds {completion} exactly once, where the answer goes; for example "
            "'{prompt}\\n{completion}'"
        )
    for place in _PLACE.findall(text):
        if place not in ("{completion}", *may_hold):
            raise ValueError(
                f"{place} is no place that is filled in; a template holds {{completion}} and may "
                f"hold {', '.join(may_hold)}. The prompt is {{prompt}}"
            )
    for place in may_hold:
        if text.count(place) > 1:
            raise ValueError(f"a template holds {place} at most once")
    if text.find("{prompt}") > text.find("{completion}"):
        raise ValueError("a template holds {prompt} before {completion}")
    if "{bos}" in text and not text.startswith("{bos}"):
        raise ValueError("{bos}, the begin-of-text token, stands at a template's beginning only")
    return text
