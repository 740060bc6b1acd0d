"""How an offloaded reward is to be called, read from an object that may be third-party code."""

from __future__ import annotations

from typing import NamedTuple

from stars_engine.rewards.base import OffloadedReward
from stars_engine.scalars import real_number


class Offloading(NamedTuple):
    """The members of `OffloadedReward`, and the optional ones that concern its calls."""

    max_concurrency: int
    timeout_s: float | None
    batched: bool
    ends_overdue_calls: bool


def offloading_of(reward: OffloadedReward) -> Offloading:
    """Return how a reward is to be called.

    Raises:
        TypeError: A member has the wrong type.
        ValueError: A member has a value that is not allowed.
    """
    count, timeout_s = reward.max_concurrency, reward.timeout_s
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"max_concurrency={count!r:.60} is not allowed; allowed: an integer >= 1")
    if timeout_s is not None:
        timeout_s = real_number(timeout_s, "timeout_s")
        if not timeout_s > 0:
            raise ValueError(f"timeout_s={timeout_s} is not allowed; allowed: above 0, or None")
    ends = bool(getattr(reward, "ends_overdue_calls", False))
    return Offloading(count, timeout_s, bool(reward.batched), ends)
