"""Exact output distributions, by running the *real* loop once for every path of its randomness.

A run requests uniforms and gets objects that record a tree instead of numbers. When such an object
decides an outcome (a token, or acceptance), the run takes a branch and multiplies its weight by the
outcome's probability. Runs repeat, depth first, until every branch is taken.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Self, TypeVar

Outcome = TypeVar("Outcome", bound=Hashable)


def enumerate_law(
    run: Callable[[TreeNoise], Outcome], *, max_paths: int = 2_000_000
) -> dict[Outcome, float]:
    """Return the exact probability of every outcome of `run`.

    Args:
        run: Runs one rollout through the real loop with the given noise, and returns the outcome
            to count, such as its token ids. It must be deterministic, given the noise: set a number
            of candidates, since "auto" depends on measured speed.
        max_paths: Maximum number of runs.

    Raises:
        RuntimeError: There are more paths than `max_paths`.
    """
    law: dict[Outcome, float] = defaultdict(float)
    noise = TreeNoise()
    for _ in range(max_paths):
        outcome = run(noise)
        law[outcome] += noise.weight
        if not noise.next_path():
            return dict(law)
    raise RuntimeError(f"more than max_paths={max_paths} paths. Hint: use smaller tables")


@dataclass(slots=True)
class _Branch:
    probs: tuple[float, ...]
    taken: int


@dataclass(slots=True)
class TreeNoise:
    """A `Noise` whose uniforms follow one path through the tree of all outcomes.

    Attributes:
        weight: Probability of the path taken by the last run.
    """

    weight: float = 1.0
    _path: list[_Branch] = field(default_factory=list)
    _depth: int = 0

    def token_uniforms(
        self, *, position: int, attempt: int, count: int
    ) -> Sequence[BranchingUniform]:
        """See `Noise`."""
        return [BranchingUniform(self) for _ in range(count)]

    def acceptance_uniform(self, *, position: int, attempt: int) -> BranchingUniform:
        """See `Noise`."""
        return BranchingUniform(self)

    def proposal_index(self, *, position: int, attempt: int, shares: Sequence[float]) -> int:
        """See `Noise`."""
        return self.choose(shares)

    def choose(self, probs: Sequence[float]) -> int:
        """Take this run's branch among outcomes of the given probabilities."""
        if self._depth == len(self._path):
            first = next(index for index, prob in enumerate(probs) if prob > 0)
            self._path.append(_Branch(tuple(probs), first))
        branch = self._path[self._depth]
        assert branch.probs == tuple(probs), "the run is not deterministic, given its noise"
        self._depth += 1
        self.weight *= branch.probs[branch.taken]
        return branch.taken

    def next_path(self) -> bool:
        """Advance to a path that has not been taken; return False if there is none."""
        del self._path[self._depth :]
        self.weight, self._depth = 1.0, 0
        while self._path:
            branch = self._path[-1]
            later = range(branch.taken + 1, len(branch.probs))
            branch.taken = next((i for i in later if branch.probs[i] > 0), -1)
            if branch.taken >= 0:
                return True
            self._path.pop()
        return False


class BranchingUniform(float):
    """A uniform on [0, 1) that branches when it is used: as a token's quantile, or in `u < a`."""

    _noise: TreeNoise

    def __new__(cls, noise: TreeNoise) -> Self:
        """Create a uniform that belongs to a tree."""
        uniform = super().__new__(cls, float("nan"))  # any other use is a mistake
        uniform._noise = noise
        return uniform

    def choose(self, probs: Sequence[float]) -> int:
        """Return the index of the outcome that this path takes."""
        return self._noise.choose(probs)

    def __lt__(self, probability: float) -> bool:
        return self._noise.choose((probability, 1.0 - probability)) == 0
