"""A Python callable as reward model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from itertools import chain, count
from threading import Thread
from typing import Any

from stars_engine.config import FunctionReward
from stars_engine.errors import ModelLoadError
from stars_engine.import_strings import name_of, named_object
from stars_engine.rewards.base import as_number, check_count, with_floor
from stars_engine.rewards.event_loop import EventLoop
from stars_engine.rewards.failures import FailurePolicy
from stars_engine.types import RewardInput, Score


class FunctionRewardModel:
    """Calls `f(prompt, completion)` for each completion, or once with lists if `batched`.

    With `by="input"`, calls `f(input)` or `f(inputs)`. It is an `OffloadedReward`, so the engine
    calls it on worker threads. If a call returns an awaitable, it is awaited on an event loop that
    belongs to this reward, and cancelled after `timeout_s`. If one blocks the event loop for
    longer, the others are called again on a new loop.
    """

    def __init__(self, config: FunctionReward) -> None:
        self._config = config
        self.max_concurrency = config.max_concurrency
        self.timeout_s = config.timeout_s
        self.batched = config.batched
        self.failures = FailurePolicy.of(config, retry_wait_s=config.retry_wait_s)
        self._function = resolve_function(config.function)
        shown = config.function
        self.name = shown if isinstance(shown, str) else name_of(shown)
        call = getattr(self._function, "__call__", None)  # noqa: B004 - it may be an async method
        self.ends_overdue_calls = inspect.iscoroutinefunction(
            self._function
        ) or inspect.iscoroutinefunction(call)
        self._loop = EventLoop(f"stars-reward-loop-{self.name}")

    def score(self, inputs: Sequence[RewardInput]) -> list[Score]:
        """See `RewardModel`."""
        if not inputs:
            return []
        if self.batched:
            values = list(self._call(*self._arguments(inputs)))
            check_count(values, inputs)
        else:
            values = [self._call(*self._arguments([item], single=True)) for item in inputs]
        return [with_floor(as_number(value), self._config.floor) for value in values]

    def end_calls(self) -> None:
        """Cancel awaitables and end the event loop; the next call starts a new one."""
        self._loop.close()

    @property
    def threads(self) -> list[Thread]:
        """The threads that run the event loops of this reward."""
        return self._loop.threads

    def _arguments(self, inputs: Sequence[RewardInput], *, single: bool = False) -> list[Any]:
        columns: list[list[Any]]
        if self._config.by == "input":
            columns = [list(inputs)]
        else:
            columns = [[item.prompt.text for item in inputs], [item.text for item in inputs]]
        return [column[0] for column in columns] if single else columns

    def _call(self, *arguments: Any) -> Any:
        result = self._function(*arguments)
        if not inspect.isawaitable(result):
            return result
        awaitables = chain([result], (self._function(*arguments) for _ in count()))
        return self._loop.run(lambda: next(awaitables), timeout_s=self.timeout_s)


def resolve_function(function: str | Callable[..., Any]) -> Callable[..., Any]:
    """Return a callable; import it if it is given by name.

    Raises:
        ModelLoadError: The name cannot be imported, or is not that of a callable.
    """
    try:
        found: Callable[..., Any] = named_object(function)
    except ImportError as error:
        raise ModelLoadError(
            f"function={function!r} cannot be imported: {error}. Hint: give the name of a callable "
            "on the import path, as 'package.module:name'"
        ) from error
    except TypeError as error:
        raise ModelLoadError(f"function={error}") from error
    return found
