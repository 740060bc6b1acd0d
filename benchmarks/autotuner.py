"""What it brings to choose how many candidates each rollout of a round drafts, simulated.

    python -m benchmarks.pacing [--seeds 40]

No models: 8 rollouts of 20 segments, 20 attempts each, whose draws are accepted with probabilities
from 0.95 down to 0.1, which fall by 3 % with every segment. Rounds cost what a table says of their
rows. All ways see the same draws, so they differ in rounds and rows alone. "Equal shares" is the
best of all, found afterwards. "Each for itself" takes the least expected time until acceptance as
if all others drafted as many. "Accepted segments" deals out rows by those per second, in place of
used draws per second. Acceptance is known; or it is learnt, by the engine's `AcceptanceEstimates`
or by one posterior for all of a call, in the first call with these settings, and in the third.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from stars_engine.core.autotune import (
    AcceptanceEstimates,
    Chances,
    Curve,
    SegmentDraws,
    allocate_rows,
)

Cost = Callable[[int], float]
Choose = Callable[[Sequence["Walker"], Cost, int], Sequence[int]]

ACCEPTANCES = (0.95, 0.8, 0.6, 0.5, 0.4, 0.25, 0.15, 0.1)
FALL, NUM_SEGMENTS, MAX_ATTEMPTS = 0.97, 20, 20
COSTS: dict[str, Cost] = {
    "two rows as dear as eight": Curve({1: 1.0, 2: 1.5, 8: 1.6, 16: 2.1, 64: 5.0, 160: 12.0}),
    "a row adds 1 %": Curve({1: 1.0, 160: 1 + 0.01 * 159}),
    "a row adds 7 %": Curve({1: 1.0, 160: 1 + 0.07 * 159}),
    "a row adds 20 %": Curve({1: 1.0, 160: 1 + 0.2 * 159}),
}


@dataclass
class Walker:
    """A rollout without text.

    Attributes:
        usual: Acceptance of its first segment.
        needed: Draws that each segment takes, whatever is drafted at once.
        done: Its segments so far.
        num_rejected: Draws of the segment at hand.
    """

    usual: float
    needed: list[int]
    done: list[SegmentDraws] = field(default_factory=list)
    num_rejected: int = 0

    @property
    def acceptance(self) -> float:
        """Of the segment at hand."""
        return self.usual * FALL ** len(self.done)

    @property
    def most(self) -> int:
        """Attempts that are left."""
        return MAX_ATTEMPTS - self.num_rejected

    @property
    def finished(self) -> bool:
        """Whether all segments are done."""
        return len(self.done) == len(self.needed)

    def draw(self, count: int) -> SegmentDraws | None:
        """Go one round; return the segment that it has settled."""
        self.num_rejected += count
        needed = self.needed[len(self.done)]
        if self.num_rejected < needed:
            return None
        # Attempts that are spent count as rejected, as in the engine.
        settled = SegmentDraws(len(self.done), min(needed, MAX_ATTEMPTS), needed <= MAX_ATTEMPTS)
        self.done.append(settled)
        self.num_rejected = 0
        return settled


def walkers(seed: int) -> list[Walker]:
    """Return rollouts whose draws are settled by the seed."""
    found = []
    for index, usual in enumerate(ACCEPTANCES):
        rng = Random(100 * seed + index)
        needed = []
        for segment in range(NUM_SEGMENTS):
            tries = range(1, MAX_ATTEMPTS + 1)
            accepted = (n for n in tries if rng.random() < usual * FALL**segment)
            needed.append(next(accepted, MAX_ATTEMPTS + 1))
        found.append(Walker(usual, [min(n, MAX_ATTEMPTS + 1) for n in needed]))
    return found


def simulate(
    choose: Choose,
    cost: Cost,
    seed: int,
    *,
    max_rows: int = 128,
    note: Callable[[SegmentDraws], None] = lambda _: None,
) -> float:
    """Return the seconds of all rounds.

    Args:
        choose: Says how many candidates each rollout drafts.
        cost: Of a round, by its rows.
        seed: Of acceptance.
        max_rows: Of a round; who does not fit in has the first place in the next.
        note: Told of every segment that is settled.
    """
    ready, seconds = walkers(seed), 0.0
    while ready:
        group, others, num_rows = [], [], 0
        counts = choose(ready, cost, max_rows)
        for walker, wanted in zip(ready, counts, strict=True):
            count = min(wanted, walker.most, max_rows)
            if num_rows + count <= max_rows:
                group.append((walker, count))
                num_rows += count
            else:
                others.append(walker)
        seconds += cost(num_rows)
        for walker, count in group:
            limit = walker.most
            settled = walker.draw(count + (count == limit))  # the last attempt settles it
            if settled is not None:
                note(settled)
        ready = others + [walker for walker, _ in group if not walker.finished]
    return seconds


def equal(share: int) -> Choose:
    """Return the way in which all draft equally many."""
    return lambda ready, *_: [share] * len(ready)


def dealt(ready: Sequence[Walker], cost: Cost, max_rows: int) -> Sequence[int]:
    """Deal out rows as the engine does, knowing acceptance."""
    return allocate_rows([Chances(1, w.most, w.acceptance) for w in ready], cost, max_rows)


def each_for_itself(ready: Sequence[Walker], cost: Cost, _: int) -> Sequence[int]:
    """Choose for each as if all others drafted as many."""
    return [_alone(walker.acceptance, walker.most, cost, len(ready)) for walker in ready]


def by_segments(ready: Sequence[Walker], cost: Cost, max_rows: int) -> Sequence[int]:
    """Deal out rows for most accepted segments per second."""
    counts = [1] * len(ready)
    best, best_counts = 0.0, list(counts)
    while True:
        accepted = [1 - (1 - w.acceptance) ** m for w, m in zip(ready, counts, strict=True)]
        if (rate := sum(accepted) / cost(sum(counts))) > best:
            best, best_counts = rate, list(counts)
        room = [i for i, walker in enumerate(ready) if counts[i] < walker.most]
        if not room or sum(counts) >= max_rows:
            return best_counts
        counts[max(room, key=lambda i: ready[i].acceptance * (1 - accepted[i]))] += 1


class Learnt:
    """Deals out rows as the engine does, by what was seen."""

    def __init__(self) -> None:
        self._estimates = AcceptanceEstimates()

    def choose(self, ready: Sequence[Walker], cost: Cost, max_rows: int) -> Sequence[int]:
        """Say how many each drafts."""
        chances = []
        for walker in ready:
            at_hand = SegmentDraws(len(walker.done), walker.num_rejected, accepted=False)
            acceptance = self._estimates.acceptance("all", [*walker.done[-8:], at_hand])
            chances.append(Chances(1, walker.most, acceptance))
        return allocate_rows(chances, cost, max_rows)

    def note(self, settled: SegmentDraws) -> None:
        """Learn."""
        self._estimates.note("all", settled)


class OnePosterior:
    """Each for itself, by one posterior for all draws of a call."""

    def __init__(self) -> None:
        self._num_accepted, self._num_draws = 1.0, 3.0

    def choose(self, ready: Sequence[Walker], cost: Cost, _: int) -> Sequence[int]:
        """Say how many each drafts."""
        acceptance = self._num_accepted / self._num_draws
        return [_alone(acceptance, walker.most, cost, len(ready)) for walker in ready]

    def note(self, settled: SegmentDraws) -> None:
        """Learn."""
        self._num_accepted += settled.accepted
        self._num_draws += settled.num_draws


def _alone(acceptance: float, most: int, cost: Cost, num_rollouts: int) -> int:
    def expected(count: int) -> float:
        return cost(count * num_rollouts) / (1 - (1 - acceptance) ** count)

    return min(range(1, most + 1), key=expected)


def measure(cost: Cost, max_rows: int, seeds: Sequence[int]) -> dict[str, float]:
    """Return the mean seconds of each way."""

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
        "dealt out, known": mean(dealt),
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
