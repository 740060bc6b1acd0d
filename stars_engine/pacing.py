"""How many candidates to draft at once: what rounds cost, and what they are likely to bring.

The number changes speed, never text: candidates are walked in index order, and those after the
first accepted are never looked at.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

_FORGETTING = 0.2  # weight of the newest measurement
_OPTIMISM = 0.8  # what is said of numbers beyond those that were seen, so that they are tried
_SLOPE = 0.1  # what a further row costs, as a share of a round of one, before it is measured

# Counts that are considered: between them, costs and prospects differ little.
_COUNTS = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)


class RoundCosts:
    """Seconds that rounds take by the number of their rows, as measured so far.

    Hardware is not linear: two rows may cost as much as eight. Numbers of rows that were never seen
    are put on a line between those that were; beyond them a row is taken to add a tenth, and a
    fifth is taken off, so that the next number up or down is tried.
    """

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def note(self, num_rows: int, seconds: float) -> None:
        """Take in a measurement; of rounds of different lengths, per token."""
        old = self._seconds.get(num_rows, seconds)
        self._seconds[num_rows] = old + _FORGETTING * (seconds - old)

    def of(self, num_rows: float) -> float:
        """Return the seconds expected of a round."""
        if not self._seconds:
            return 1 + _SLOPE * (num_rows - 1)
        if num_rows in self._seconds:
            return self._seconds[int(num_rows)]
        seen = sorted(self._seconds)
        place = bisect_left(seen, num_rows)
        if 0 < place < len(seen):
            low, high = seen[place - 1], seen[place]
            share = (num_rows - low) / (high - low)
            return self._seconds[low] + share * (self._seconds[high] - self._seconds[low])
        nearest = seen[0] if place == 0 else seen[-1]
        ratio = (1 + _SLOPE * (num_rows - 1)) / (1 + _SLOPE * (nearest - 1))
        return _OPTIMISM * self._seconds[nearest] * ratio


@dataclass(frozen=True, slots=True)
class Load:
    """What a round costs, of which a rollout is one of several.

    Attributes:
        costs: Of rounds.
        num_rollouts: That share it.
    """

    costs: RoundCosts
    num_rollouts: int = 1

    def cost(self, num_candidates: int) -> float:
        """Return the cost if each of them drafts so many candidates."""
        return self.costs.of(num_candidates * self.num_rollouts)


class Prospects:
    """How probable it is that a draw is accepted, judging by those before.

    A Beta posterior; before the first draw one in three.
    """

    def __init__(self) -> None:
        self._num_accepted, self._num_draws = 1.0, 3.0

    def note(self, *, accepted: bool) -> None:
        """Take in one judged draw."""
        self._num_accepted += accepted
        self._num_draws += 1

    @property
    def acceptance(self) -> float:
        """The posterior's mean."""
        return self._num_accepted / self._num_draws


def best_count(acceptance: float, most: int, load: Load) -> int:
    """Return how many candidates bring an accepted one soonest.

    A round of m ends the segment with probability 1 - (1 - p)^m and costs c(m): the expected cost
    until it does is the latter over the former.

    Args:
        acceptance: Probability p of each candidate.
        most: Candidates at most.
        load: What rounds cost.
    """
    counts = [count for count in _COUNTS if count < most] + [most]
    return min(counts, key=lambda m: load.cost(m) / (1 - (1 - acceptance) ** m))
