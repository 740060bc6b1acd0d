"""Faults that strike once, at the k-th call of a part of the engine."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from stars_engine.backends.base import LanguageModel

KINDS: dict[str, Callable[[], Any]] = {
    "exception": lambda: _raise(ValueError("a fault")),
    "out of memory": lambda: _raise(RuntimeError("out of memory: a fault")),
    "exit": lambda: _raise(SystemExit(3)),
    "wrong shape": lambda: "a fault",
    "nan": lambda: math.nan,
}


class Fault:
    """Replaces the outcome of one call.

    Args:
        kind: A key of `KINDS`.
        strikes_at: Number of the call, from 1; 0 for never.

    Attributes:
        num_calls: Calls so far.
        struck: Whether it has happened.
    """

    def __init__(self, kind: str, strikes_at: int = 0) -> None:
        self.kind, self.strikes_at = kind, strikes_at
        self.num_calls = 0

    @property
    def struck(self) -> bool:
        return 0 < self.strikes_at <= self.num_calls

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return the call with the fault; a wrong value replaces what it returns."""

        def run(*args: Any, **kwargs: Any) -> Any:
            self.num_calls += 1
            if self.num_calls == self.strikes_at:
                return KINDS[self.kind]()
            return call(*args, **kwargs)

        return run


class FaultyModel:
    """A language model with a fault in one of its methods."""

    def __init__(self, model: LanguageModel, method: str, fault: Fault) -> None:
        self._model = model
        setattr(self, method, fault.around(getattr(model, method)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _raise(error: BaseException) -> Any:
    raise error
