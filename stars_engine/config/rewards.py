"""Reward models as config objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic.json_schema import SkipJsonSchema

from stars_engine.config.models import Checkpoint
from stars_engine.named import check_name
from stars_engine.schema import Schema, not_nan

_FLOOR = Field(
    default=None,
    description="veto: a candidate whose reward is below is rejected and never forced",
    examples=[-2.0],
)


class ClassifierReward(Checkpoint):
    """A sequence classifier; the reward is one of its logits for the whole text so far."""

    kind: Literal["classifier"] = "classifier"
    label: int | str | None = Field(
        default=None,
        description="which logit, by index or label name; needed if there are several",
        examples=["POSITIVE"],
    )
    read: Literal["auto", "ids", "text"] = Field(
        default="auto",
        description="feed the language model's token ids, or text through the reward model's own "
        "tokenizer; auto: ids if the two tokenizers are the same",
        examples=["text"],
    )
    batch_size: int = Field(
        default=16, ge=1, description="candidates scored in one forward pass", examples=[16]
    )
    floor: float | None = _FLOOR

    @field_validator("floor")
    @classmethod
    def _floor_not_nan(cls, floor: float | None) -> float | None:
        return not_nan(floor, "a floor is a number or None")


class FunctionReward(Schema):
    """A Python callable `f(prompt: str, completion: str) -> float`."""

    kind: Literal["function"] = "function"
    function: str | SkipJsonSchema[Callable[..., Any]] = Field(
        description="the callable, or where it is: 'package.module:name'",
        examples=["my_package.rewards:politeness"],
    )
    batched: bool = Field(
        default=False,
        description="the callable takes lists of prompts and completions, and returns a list",
    )
    max_concurrency: int = Field(
        default=8,
        ge=1,
        description="calls at one time, from threads of their own; 1 if it is not thread-safe",
        examples=[1],
    )
    timeout_s: Annotated[float, Field(gt=0)] | None = Field(
        default=60.0,
        description="seconds one call may take before its request fails; None: as long as it likes",
        examples=[5.0],
    )
    floor: float | None = _FLOOR

    @field_validator("floor")
    @classmethod
    def _floor_not_nan(cls, floor: float | None) -> float | None:
        return not_nan(floor, "a floor is a number or None")

    @field_validator("function")
    @classmethod
    def _names_an_object(cls, function: Any) -> Any:
        return check_name(function)

    @property
    def is_live(self) -> bool:
        """True if the config holds an object that no file can hold."""
        return not isinstance(self.function, str)
