"""Config objects of rewards that are Python callables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema

from stars_engine.config.rewards.common import Failing
from stars_engine.import_strings import check_name
from stars_engine.schema import Schema


class _Callable(Schema):
    """A separate class, so that `function` is the first field."""

    function: str | SkipJsonSchema[Callable[..., Any]] = Field(
        description="the callable, sync or async, or its name: 'package.module:name'",
        examples=["my_package.rewards:politeness"],
    )

    @field_validator("function")
    @classmethod
    def _names_an_object(cls, function: Any) -> Any:
        return check_name(function)


class FunctionReward(Failing, _Callable):
    """A Python callable `f(prompt: str, completion: str) -> float`, or `f(input)`; see `by`."""

    kind: Literal["function"] = "function"
    by: Literal["text", "input"] = Field(
        default="text",
        description="arguments of the callable: prompt and completion as text, or one RewardInput, "
        "which also has token ids, messages and whether the answer is finished",
        examples=["input"],
    )
    batched: bool = Field(
        default=False,
        description="the callable takes lists (of prompts and of completions, or of inputs), and "
        "returns a list",
    )
    max_concurrency: int = Field(
        default=8,
        ge=1,
        description="maximum number of concurrent calls, each on its own thread; use 1 if the "
        "callable is not thread-safe",
        examples=[1],
    )
    timeout_s: Annotated[float, Field(gt=0)] | None = Field(
        default=60.0,
        description="seconds after which a call has failed; None means no limit",
        examples=[5.0],
    )
    retry_wait_s: float = Field(
        default=0.5,
        ge=0,
        allow_inf_nan=False,
        description="seconds before the first retry, doubled each time, up to 30; with "
        "on_failure='retry'",
        examples=[0.5],
    )

    @model_validator(mode="after")
    def _waiting_acts(self) -> Self:
        self._acts_when_retrying("retry_wait_s")
        return self

    @property
    def live_fields(self) -> frozenset[str]:
        """See `Part`."""
        return frozenset() if isinstance(self.function, str) else frozenset(("function",))

    @property
    def shown_name(self) -> str:
        """See `Part`."""
        return self.function if isinstance(self.function, str) else super().shown_name
