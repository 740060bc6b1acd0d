"""Config objects of weighted sums of rewards."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from stars_engine.config.models import EMBEDDED_VALUE
from stars_engine.config.rewards.classifier import ClassifierReward
from stars_engine.config.rewards.common import Floored, check_floor
from stars_engine.config.rewards.function import FunctionReward
from stars_engine.config.rewards.guard import GuardrailReward, GuardReward
from stars_engine.config.rewards.process import ProcessReward
from stars_engine.config.rewards.server import (
    ServerProcessReward,
    ServerReward,
    ServerYesNoReward,
)
from stars_engine.config.rewards.value import ValueReward
from stars_engine.config.rewards.vllm import VLLMReward
from stars_engine.config.rewards.yes_no import YesNoReward
from stars_engine.import_strings import names_an_object
from stars_engine.problems import Problem
from stars_engine.schema import Schema

SingleKind = (
    ClassifierReward
    | ProcessReward
    | YesNoReward
    | ValueReward
    | GuardReward
    | GuardrailReward
    | FunctionReward
    | ServerReward
    | ServerYesNoReward
    | ServerProcessReward
    | VLLMReward
)
SingleReward = Annotated[SingleKind, Field(discriminator="kind")]


def as_reward(value: Any) -> Any:
    """Convert a name or a callable to the config object that it stands for."""
    if isinstance(value, str):
        # The names of embedded weights have the same form.
        if names_an_object(value) and not value.startswith("stars:"):
            return FunctionReward(function=value)
        if value == EMBEDDED_VALUE:
            return ValueReward(name_or_path=value)
        return ClassifierReward(name_or_path=value)
    return FunctionReward(function=value) if callable(value) else value


class RewardPart(Schema):
    """One part of a `CompositeReward`: weight * (r - mean) / std."""

    reward: SingleReward = Field(
        description="the reward; a name alone means ClassifierReward, a callable or "
        "'package.module:name' FunctionReward",
        examples=[{"kind": "function", "function": "my_package.rewards:politeness"}],
    )
    weight: float = Field(
        default=1.0,
        allow_inf_nan=False,
        description="factor in the sum; with 0 only the floor applies, and with a negative weight "
        "lower is better",
        examples=[0.5],
    )
    mean: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="subtracted first, in the part's own units; None subtracts nothing",
        examples=[1.5],
    )
    std: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        default=None,
        description="divisor after that, in the part's own units; None means 1",
        examples=[2.0],
    )
    floor: float | None = Field(
        default=None,
        description="veto in the part's own units, independent of the sum",
        examples=[-1.0],
    )

    @field_validator("reward", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
        if kind == "composite":
            raise ValueError(
                "a composite within a composite is not supported. Hint: add its parts to the outer "
                "one, with their weights multiplied"
            )
        return as_reward(value)

    @field_validator("floor")
    @classmethod
    def _floor_is_no_wall(cls, floor: float | None) -> float | None:
        return check_floor(floor)

    def standardised(self, value: float) -> float:
        """Return the contribution of a value to the sum; not finite if the value is not."""
        value = (value - (self.mean or 0.0)) / (1.0 if self.std is None else self.std)
        return self.weight * value if math.isfinite(value) else value


class _Parts(Schema):
    """A separate class, so that `parts` is the first field."""

    parts: dict[str, RewardPart] = Field(
        description="the parts by name, at least one; a reward alone means RewardPart(reward=...) "
        "with weight 1",
        examples=[{"tone": {"reward": "stars:embedded-reward", "weight": 0.7}}],
    )

    @field_validator("parts", mode="before")
    @classmethod
    def _bare_rewards(cls, parts: Any) -> Any:
        if not isinstance(parts, Mapping):
            return parts
        return {name: _as_part(value) for name, value in parts.items()}

    @field_validator("parts")
    @classmethod
    def _named(cls, parts: dict[str, RewardPart]) -> dict[str, RewardPart]:
        if not parts:
            raise ValueError("a composite needs at least one part, as in {'tone': 'my/classifier'}")
        if "" in parts:
            raise ValueError("a part has an empty name; results and errors show the names")
        return parts


class CompositeReward(Floored, _Parts):
    """A weighted sum of named rewards, which may be models and functions."""

    kind: Literal["composite"] = "composite"

    @property
    def live_fields(self) -> frozenset[str]:
        """See `Part`."""
        is_live = any(part.reward.is_live for part in self.parts.values())
        return frozenset(("parts",)) if is_live else frozenset()

    def identity(self) -> dict[str, Any]:
        """See `Part`."""
        parts = {
            name: {**part.model_dump(exclude={"reward"}), "reward": part.reward.identity()}
            for name, part in self.parts.items()
        }
        return {**self.model_dump(exclude={"parts"}), "parts": parts}

    def unwritable(self) -> Iterator[Problem]:
        """See `Part`."""
        for name, part in self.parts.items():
            for problem in part.reward.unwritable():
                yield problem.under(f"parts.{name}.reward")


def _as_part(value: Any) -> Any:
    is_part = isinstance(value, RewardPart) or (isinstance(value, Mapping) and "kind" not in value)
    return value if is_part else {"reward": value}
