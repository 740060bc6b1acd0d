"""Custom models and rewards whose attributes raise when they are read."""

from __future__ import annotations

from collections import Counter
from typing import Any


class Reads:
    """Counts reads of attributes, and raises at some of them.

    Attributes:
        counts: Reads so far, by name.
        name: The attribute that raises.
        at: The read of it that raises, from 1; 0 for all.
        error: What it raises; None for nothing.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.name = ""
        self.at = 0
        self.error: BaseException | None = None

    def arm(self, name: str, error: BaseException | None, at: int = 0) -> None:
        self.counts.clear()
        self.name, self.at, self.error = name, at, error

    @property
    def has_struck(self) -> bool:
        return self.error is not None and self.counts[self.name] >= max(1, self.at)

    def note(self, name: str) -> None:
        self.counts[name] += 1
        if self.error is not None and name == self.name and self.at in (0, self.counts[name]):
            raise self.error


class Watched:
    """Forwards all attributes to an object, and notes which are read."""

    def __init__(self, inner: Any, reads: Reads) -> None:
        object.__setattr__(self, "_watched", (inner, reads))

    def __getattribute__(self, name: str) -> Any:
        inner, reads = object.__getattribute__(self, "_watched")
        if name.startswith("__"):
            return object.__getattribute__(self, name)
        reads.note(name)
        return getattr(inner, name)
