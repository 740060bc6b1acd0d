"""Config objects of value heads, which read the language model's own hidden states."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from stars_engine.config.loading import check_name
from stars_engine.config.models import EMBEDDED_VALUE
from stars_engine.config.rewards.common import Floored


class ValueReward(Floored):
    """A value head that `train_guide` has fitted to the language model.

    It reads hidden states that drafting computes anyway, so it costs next to nothing and needs no
    second model. A `reward_prompt` does not change it.
    """

    written_as: ClassVar[str] = "name_or_path"
    kind: Literal["value"] = "value"
    name_or_path: str | None = Field(
        default=None,
        min_length=1,
        description="the folder that train_guide or `stars train-guide` wrote; "
        "'stars:embedded-value' is the head of the embedded pair",
        examples=["guides/sentiment"],
    )
    head: Any = Field(
        default=None,
        exclude=True,
        repr=False,
        description="a loaded ValueHead, instead of name_or_path",
    )

    @field_validator("name_or_path")
    @classmethod
    def _name_is_a_name(cls, name: str | None) -> str | None:
        return check_name(name)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.name_or_path is None) == (self.head is None):
            raise ValueError(
                "either name_or_path, the folder of a value head, or head, a loaded ValueHead, is "
                "required, and not both. Hint: give one of them"
            )
        return self

    @property
    def live_fields(self) -> frozenset[str]:
        """See `Part`."""
        return frozenset() if self.head is None else frozenset(("head",))

    @property
    def is_embedded(self) -> bool:
        """Whether this is the head inside the package."""
        return self.name_or_path == EMBEDDED_VALUE

    @property
    def shown_name(self) -> str:
        """See `Part`."""
        return self.name_or_path or super().shown_name
