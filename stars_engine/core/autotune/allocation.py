"""Allocate the rows of a step to its requests. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from typing import NamedTuple


class Chances(NamedTuple):
    """The bounds and the acceptance probability of one request.

    Attributes:
        least: Minimum number of candidates.
        most: Maximum number of candidates.
        acceptance: Acceptance probability p of each candidate, in [0, 1].
    """

    least: int
    most: int
    acceptance: float


def allocate_rows(
    rollouts: Sequence[Chances], cost: Callable[[int], float], max_rows: int | None = None
) -> list[int]:
    """Return how many candidates each request drafts, to maximize used draws per second.

    A draw is used if no draw before it is accepted: draw m + 1 of a request, with probability
    (1 - p)^m. The number of draws that an answer needs does not depend on how many are drafted at
    once, so used draws per second are the measure of speed. Accepted segments per second would be
    the wrong measure: each is worth 1 / p draws, so hard requests would wait for easy ones and
    leave small batches at the end. For a single request, the measure gives the shortest expected
    time until acceptance.

    Each further row goes to the request that is most likely to use it, which is optimal for every
    total. All totals are compared, because costs are not smooth: two rows may cost as much as
    eight.

    Args:
        rollouts: The requests of one step.
        cost: Cost of a step by its number of rows, in any unit of time; above 0.
        max_rows: Maximum number of rows, unless the minimums exceed it; None for no limit.
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
    assigned: list[int] = []  # the request that gets each further row
    best, best_len = used / cost(num_rows), 0
    while gains and (max_rows is None or num_rows < max_rows):
        gain, index = heappop(gains)
        used, num_rows = used - gain, num_rows + 1
        counts[index] += 1
        assigned.append(index)
        if counts[index] < rollouts[index].most:
            heappush(gains, (gain * (1 - rollouts[index].acceptance), index))
        rate = used / cost(num_rows)
        if rate > best:
            best, best_len = rate, len(assigned)
    for index in assigned[best_len:]:
        counts[index] -= 1
    return counts


def _num_used(acceptance: float, count: int) -> float:
    return (1 - (1 - acceptance) ** count) / acceptance if acceptance else count
