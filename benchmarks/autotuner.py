"""Simulate strategies that choose how many candidates each rollout drafts in a step.

    python -m benchmarks.autotuner [--seeds 40]

The simulation has no models: 8 rollouts of 20 segments with 20 attempts each. Draws are accepted
with probabilities from 0.95 down to 0.1, which fall by 3 % with every segment. A table gives the
cost of a step by its number of rows. All strategies see the same draws, so they differ only in
steps and rows.

"Allocated" is the engine's strategy: it allocates rows for the most used draws per second. "Equal
shares" is the best equal number for all rollouts, found afterwards. "Each for itself" minimizes a
rollout's expected time until acceptance as if all others drafted as many. "Accepted segments"
allocates rows for the most accepted segments per second. Acceptance is known, or it is learnt by
the engine's `AcceptanceEstimates` or by one posterior for a whole call, in the first call with
these settings and in the third.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from stars_engine.core.autotune.acceptance_estimates import AcceptanceEstimates, SegmentDraws
from stars_engine.core.autotune.allocation import Chances, allocate_rows
from stars_engine.core.autotune.step_costs import StepCostCurve

Cost = Callable[[int], float]
Choose = Callable[[Sequence["SimulatedRollout"], Cost, int], Sequence[int]]

ACCEPTANCES = (0.95, 0.8, 0.6, 0.5, 0.4, 0.25, 0.15, 0.1)
FALL, NUM_SEGMENTS, MAX_ATTEMPTS = 0.97, 20, 20
COSTS: dict[str, Cost] = {
    "two rows cost as much as eight": StepCostCurve(
        {1: 1.0, 2: 1.5, 8: 1.6, 16: 2.1, 64: 5.0, 160: 12.0}
    ),
    "a row adds 1 %": StepCostCurve({1: 1.0, 160: 1 + 0.01 * 159}),
    "a row adds 7 %": StepCostCurve({1: 1.0, 160: 1 + 0.07 * 159}),
    "a row adds 20 %": StepCostCurve({1: 1.0, 160: 1 + 0.2 * 159}),
}


@dataclass
class SimulatedRollout:
    """A rollout without text.

    Attributes:
        usual: Acceptance probability of its first segment.
        needed: Number of draws that each segment takes, however many are drafted at once.
        done: Finished segments.
        num_rejected: Number of draws of the current segment.
    """

    usual: float
    needed: list[int]
    done: list[SegmentDraws] = field(default_factory=list)
    num_rejected: int = 0

    @property
    def acceptance(self) -> float:
        """Acceptance probability of the current segment."""
        return self.usual * FALL ** len(self.done)

    @property
    def most(self) -> int:
        """Number of attempts that are left."""
        return MAX_ATTEMPTS - self.num_rejected

    @property
    def finished(self) -> bool:
        """Whether all segments are done."""
        return len(self.done) == len(self.needed)

    def draw(self, count: int) -> SegmentDraws | None:
        """Draw in one step; return the segment if that finishes it."""
        self.num_rejected += count
        needed = self.needed[len(self.done)]
        if self.num_rejected < needed:
            return None
        # A segment without an accepted attempt counts as rejected, as in the engine.
        settled = SegmentDraws(len(self.done), min(needed, MAX_ATTEMPTS), needed <= MAX_ATTEMPTS)
        self.done.append(settled)
        self.num_rejected = 0
        return settled


def rollouts(seed: int) -> list[SimulatedRollout]:
    """Return rollouts whose draws depend only on the seed."""
    found = []
    for index, usual in enumerate(ACCEPTANCES):
        rng = Random(100 * seed + index)
        needed = []
        for segment in range(NUM_SEGMENTS):
            tries = range(1, MAX_ATTEMPTS + 1)
            accepted = (n for n in tries if rng.random() < usual * FALL**segment)
            needed.append(next(accepted, MAX_ATTEMPTS + 1))
        found.append(SimulatedRollout(usual, [min(n, MAX_ATTEMPTS + 1) for n in needed]))
    return found


def simulate(
    choose: Choose,
    cost: Cost,
    seed: int,
    *,
    max_rows: int = 128,
    note: Callable[[SegmentDraws], None] = lambda _: None,
) -> float:
    """Return the seconds of all steps.

    Args:
        choose: Returns how many candidates each rollout drafts.
        cost: Cost of a step by its number of rows.
        seed: Seed of the draws.
        max_rows: Maximum rows of a step; rollouts that do not fit come first in the next step.
        note: Called with every finished segment.
    """
    ready, seconds = rollouts(seed), 0.0
    while ready:
        group, others, num_rows = [], [], 0
        counts = choose(ready, cost, max_rows)
        for rollout, wanted in zip(ready, counts, strict=True):
            count = min(wanted, rollout.most, max_rows)
            if num_rows + count <= max_rows:
                group.append((rollout, count))
                num_rows += count
            else:
                others.append(rollout)
        seconds += cost(num_rows)
        for rollout, count in group:
            limit = rollout.most
            settled = rollout.draw(count + (count == limit))  # the last attempt ends the segment
            if settled is not None:
                note(settled)
        ready = others + [rollout for rollout, _ in group if not rollout.finished]
    return seconds


def equal(share: int) -> Choose:
    """Return the strategy in which all rollouts draft equally many."""
    return lambda ready, *_: [share] * len(ready)


def allocated(ready: Sequence[SimulatedRollout], cost: Cost, max_rows: int) -> Sequence[int]:
    """Allocate rows as the engine does, with known acceptance."""
    return allocate_rows([Chances(1, w.most, w.acceptance) for w in ready], cost, max_rows)


def each_for_itself(ready: Sequence[SimulatedRollout], cost: Cost, _: int) -> Sequence[int]:
    """Choose for each rollout as if all others drafted as many."""
    return [_alone(rollout.acceptance, rollout.most, cost, len(ready)) for rollout in ready]


def by_segments(ready: Sequence[SimulatedRollout], cost: Cost, max_rows: int) -> Sequence[int]:
    """Allocate rows for the most accepted segments per second."""
    counts = [1] * len(ready)
    best, best_counts = 0.0, list(counts)
    while True:
        accepted = [1 - (1 - w.acceptance) ** m for w, m in zip(ready, counts, strict=True)]
        if (rate := sum(accepted) / cost(sum(counts))) > best:
            best, best_counts = rate, list(counts)
        room = [i for i, rollout in enumerate(ready) if counts[i] < rollout.most]
        if not room or sum(counts) >= max_rows:
            return best_counts
        counts[max(room, key=lambda i: ready[i].acceptance * (1 - accepted[i]))] += 1


class Learnt:
    """Allocates rows as the engine does, with learnt acceptance."""

    def __init__(self) -> None:
        self._estimates = AcceptanceEstimates()

    def choose(self, ready: Sequence[SimulatedRollout], cost: Cost, max_rows: int) -> Sequence[int]:
        """Return how many candidates each rollout drafts."""
        chances = []
        for rollout in ready:
            at_hand = SegmentDraws(len(rollout.done), rollout.num_rejected, accepted=False)
            acceptance = self._estimates.acceptance("all", [*rollout.done[-8:], at_hand])
            chances.append(Chances(1, rollout.most, acceptance))
        return allocate_rows(chances, cost, max_rows)

    def note(self, settled: SegmentDraws) -> None:
        """Update the estimates with a finished segment."""
        self._estimates.note("all", settled)


class OnePosterior:
    """Chooses for each rollout by itself, with one posterior for all draws of a call."""

    def __init__(self) -> None:
        self._num_accepted, self._num_draws = 1.0, 3.0

    def choose(self, ready: Sequence[SimulatedRollout], cost: Cost, _: int) -> Sequence[int]:
        """Return how many candidates each rollout drafts."""
        acceptance = self._num_accepted / self._num_draws
        return [_alone(acceptance, rollout.most, cost, len(ready)) for rollout in ready]

    def note(self, settled: SegmentDraws) -> None:
        """Update the estimates with a finished segment."""
        self._num_accepted += settled.accepted
        self._num_draws += settled.num_draws


def _alone(acceptance: float, most: int, cost: Cost, num_rollouts: int) -> int:
    def expected(count: int) -> float:
        return cost(count * num_rollouts) / (1 - (1 - acceptance) ** count)

    return min(range(1, most + 1), key=expected)


def measure(cost: Cost, max_rows: int, seeds: Sequence[int]) -> dict[str, float]:
    """Return the mean seconds of each strategy."""

    def mean(choose: Choose) -> float:
        return sum(simulate(choose, cost, s, max_rows=max_rows) for s in seeds) / len(seeds)

    def learnt(kind: type[Learnt | OnePosterior], num_before: int) -> float:
        total = 0.0
        for seed in seeds:
            way = kind()
            for ahead in range(num_before, -1, -1):
                seconds = simulate(
                    way.choose, cost, seed + 1000 * ahead, max_rows=max_rows, note=way.note
                )
            total += seconds
        return total / len(seeds)

    return {
        "allocated, known": mean(allocated),
        "learnt, 1st call": learnt(Learnt, 0),
        "learnt, 3rd call": learnt(Learnt, 2),
        "one posterior, each for itself": learnt(OnePosterior, 0),
        "each for itself, known": mean(each_for_itself),
        "accepted segments, known": mean(by_segments),
        "equal shares": min(mean(equal(share)) for share in range(1, 13)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=40)
    seeds = range(parser.parse_args().seeds)
    header = False
    for name, cost in COSTS.items():
        for max_rows in (128, 16):
            found = measure(cost, max_rows, seeds)
            if not header:
                print("| costs | rows at most | " + " | ".join(found) + " |")
                header = True
            cells = " | ".join(f"{seconds:.1f}" for seconds in found.values())
            print(f"| {name} | {max_rows} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
