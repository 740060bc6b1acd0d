"""Rows of one round, dealt out to its rollouts. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from typing import NamedTuple


class Chances(NamedTuple):
    """What rows do for one rollout.

    Attributes:
        least: Candidates that it drafts in any case.
        most: Candidates at most.
        acceptance: Probability p of each, in [0, 1].
    """

    least: int
    most: int
    acceptance: float


def allocate_rows(
    rollouts: Sequence[Chances], cost: Callable[[int], float], max_rows: int | None = None
) -> list[int]:
    """Return how many candidates each rollout drafts, for most draws that are used per second.

    A draw is used if none before it is accepted: the next one of a rollout with m candidates with
    probability (1 - p)^m. How many draws an answer takes does not depend on how many are made at
    once, so their number per second is all that there is to gain. To count accepted segments
    instead, each worth 1 / p draws, would keep hard ones waiting for easy ones: then those are all
    that is left in the end, and rounds are small. For a single rollout it is the same: the least
    expected time until acceptance.

    A further row goes to the rollout that most probably uses it, which is the best use of every
    number of rows. All of these numbers are compared, because costs are bumpy: two rows may cost as
    much as eight.

    Args:
        rollouts: Of one round.
        cost: Seconds, in any unit, of a round of so many rows; above 0.
        max_rows: Rows at most, unless the least already take more; None for no limit.
    """
    counts = [rollout.least for rollout in rollouts]
    num_rows = sum(counts)
    used = sum(_num_used(rollout.acceptance, rollout.least) for rollout in rollouts)
    gains = [
        (-((1 - rollout.acceptance) ** rollout.least), index)
        for index, rollout in enumerate(rollouts)
        if rollout.most > rollout.least
    ]
    heapify(gains)
    given: list[int] = []  # who gets each further row
    best, best_len = used / cost(num_rows), 0
    while gains and (max_rows is None or num_rows < max_rows):
        gain, index = heappop(gains)
        used, num_rows = used - gain, num_rows + 1
        counts[index] += 1
        given.append(index)
        if counts[index] < rollouts[index].most:
            heappush(gains, (gain * (1 - rollouts[index].acceptance), index))
        rate = used / cost(num_rows)
        if rate > best:
            best, best_len = rate, len(given)
    for index in given[best_len:]:
        counts[index] -= 1
    return counts


def _num_used(acceptance: float, count: int) -> float:
    """Return how many draws are expected to be used of so many."""
    return (1 - (1 - acceptance) ** count) / acceptance if acceptance else count
