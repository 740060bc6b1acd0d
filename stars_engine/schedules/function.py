"""Thresholds from a user-defined callable."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

from pydantic import Field, field_serializer, field_validator
from pydantic.json_schema import SkipJsonSchema

from stars_engine.errors import ScheduleError, describe_error, is_for_program
from stars_engine.import_strings import check_name, name_of, named_object
from stars_engine.problems import Problem
from stars_engine.protocols import read_optional
from stars_engine.scalars import real_number
from stars_engine.schedules.base import BaseSchedule, Progress


class FunctionSchedule(BaseSchedule):
    """A Python callable `f(progress: Progress) -> float`.

    The callable runs on the engine's thread between two steps, so it must be fast. It must return
    the same threshold for the same progress, or texts are not reproducible by their seed.
    """

    kind: Literal["function"] = "function"
    function: str | SkipJsonSchema[Callable[..., Any]] = Field(
        description="the callable, or its name: 'package.module:name'",
        examples=["my_package.thresholds:patient"],
    )
    uses_prompt_reward: bool = Field(
        default=False,
        description="compute RM(x, '') for `prompt_reward` and the first `prefix_reward`, which "
        "are nan otherwise; costs one reward call per request",
    )

    @field_validator("function")
    @classmethod
    def _names_an_object(cls, function: Any) -> Any:
        return check_name(function)

    @field_serializer("function", when_used="json")
    def _shown(self, function: Any) -> str:
        if isinstance(function, str):
            return function
        owner = read_optional(function, "__self__", function)  # a bound method is a new object
        return f"<{type(function).__name__} {name_of(function)} at {id(owner):#x}>"

    @property
    def needs_prompt_reward(self) -> bool:
        """See `BaseSchedule`."""
        return self.uses_prompt_reward

    def unwritable(self) -> Iterator[Problem]:
        """See `BaseSchedule`."""
        if not isinstance(self.function, str):
            message = "is a live object, which files cannot contain; give 'package.module:name'"
            yield Problem("", message)

    def threshold(self, progress: Progress) -> float:
        """Return the threshold that the function returns.

        Raises:
            ScheduleError: The function cannot be imported, raised an error, or did not return a
                number.
        """
        try:
            value = real_number(named_object(self.function)(progress), "a threshold")
        except BaseException as error:  # third-party code, which may call exit
            if is_for_program(error):
                raise
            raise ScheduleError(
                f"the schedule's function failed: {describe_error(error)}. The request "
                "ends here; others are not affected. Hint: fix the function; it takes a Progress "
                "and returns a number"
            ) from error
        if math.isnan(value):
            raise ScheduleError(
                "the schedule's function returned nan; a threshold is a number, inf or -inf. Hint: "
                "check the function's inputs; `prefix_reward` is nan in the first segment unless "
                "uses_prompt_reward=True"
            )
        return value

    def final_threshold(self, progress: Progress) -> float:
        """Return the threshold that the function returns at `max_tokens`."""
        end = Progress(
            segment_index=progress.segment_index,
            num_tokens=progress.max_tokens,
            max_tokens=progress.max_tokens,
            prefix_reward=progress.prefix_reward,
            prompt_reward=progress.prompt_reward,
            ends_text=progress.ends_text,
        )
        return self.threshold(end)
