"""A Python callable as reward model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from stars_engine.config import FunctionReward
from stars_engine.errors import ModelLoadError
from stars_engine.named import named_object
from stars_engine.rewards.base import Score, as_number, check_count, with_floor
from stars_engine.types import RewardInput


class FunctionRewardModel:
    """Calls `f(prompt, completion)` for each completion, or once with lists if `batched`.

    An `OffloadedReward`: the engine calls it on threads of its own.
    """

    def __init__(self, config: FunctionReward) -> None:
        self._config = config
        self.max_concurrency = config.max_concurrency
        self.timeout_s = config.timeout_s
        self.batched = config.batched
        self._function = _resolve(config.function)
        shown = config.function
        self.name = shown if isinstance(shown, str) else getattr(shown, "__name__", repr(shown))

    def score(self, inputs: Sequence[RewardInput]) -> list[Score]:
        """See `RewardModel`."""
        prompts = [item.prompt.text for item in inputs]
        texts = [item.text for item in inputs]
        if self.batched:
            values = list(self._function(prompts, texts))
            check_count(values, inputs)
        else:
            values = [self._function(*pair) for pair in zip(prompts, texts, strict=True)]
        return [with_floor(as_number(value), self._config.floor) for value in values]


def _resolve(function: str | Callable[..., Any]) -> Callable[..., Any]:
    try:
        found: Callable[..., Any] = named_object(function)
    except ImportError as error:
        raise ModelLoadError(
            f"function={function!r} cannot be imported: {error}. Cure: name a callable on the "
            "import path as 'package.module:name'"
        ) from error
    except TypeError as error:
        raise ModelLoadError(f"function={error}") from error
    return found
