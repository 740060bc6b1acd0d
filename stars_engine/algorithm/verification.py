"""Verification of drafts: the inputs for the reward model, and the rewards that have arrived."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from stars_engine.algorithm.candidate import Candidate
from stars_engine.algorithm.rollout import Rollout
from stars_engine.errors import RewardOutcome
from stars_engine.types import RewardInput, SegmentEvent


class DraftVerification:
    """Candidates of one rollout's next segment, waiting for their rewards.

    Rewards may arrive in any order and at any time; they are *used* in index order.

    Args:
        rollout: The rollout whose next segment is verified.
        candidates: The parsed drafts, in the order of their attempts.
        inputs: Inputs for the reward model, in order. The last ones belong to the candidates; one
            before them, if any, scores the prompt alone.
        unscored: A further candidate that needs no reward; it is used if the others are rejected.

    Attributes:
        closed: Whether further rewards are ignored.
        next_failed: Whether the draft after the last candidate could not be made or parsed. Without
            such a failure, fewer candidates than requested mean that the step had no more room.
    """

    __slots__ = (
        "_num_used",
        "_outcomes",
        "candidates",
        "closed",
        "inputs",
        "next_failed",
        "rollout",
        "unscored",
    )

    def __init__(
        self,
        rollout: Rollout,
        candidates: Sequence[Candidate],
        inputs: Sequence[RewardInput],
        unscored: Candidate | None = None,
    ) -> None:
        self.rollout = rollout
        self.unscored = unscored
        self.candidates = candidates
        self.inputs = inputs
        self._outcomes: list[RewardOutcome | None] = [None] * len(inputs)
        self._num_used = 0
        self.closed = self.next_failed = False

    def set_outcome(self, index: int, outcome: RewardOutcome) -> None:
        """Set the reward, or the error, of `inputs[index]`; later calls for it are ignored."""
        if self.closed or self._outcomes[index] is not None:
            return
        self._outcomes[index] = outcome
        if index >= len(self.inputs) - len(self.candidates):
            self.rollout.count(num_surplus_rewards=1)  # until it is used

    def next_outcome(self) -> RewardOutcome | None:
        """Use and return the next outcome in index order; None if it has not arrived."""
        if self.all_used or self._outcomes[self._num_used] is None:
            return None
        self._num_used += 1
        return self._outcomes[self._num_used - 1]

    @property
    def all_arrived(self) -> bool:
        """Whether no outcome is missing."""
        return None not in self._outcomes

    @property
    def all_used(self) -> bool:
        """Whether every outcome has been used."""
        return self._num_used == len(self._outcomes)

    @property
    def candidate(self) -> Candidate:
        """The candidate of the outcome that was used last."""
        return self.candidates[self._num_used - 1 - len(self.inputs) + len(self.candidates)]


class NumDrafts(NamedTuple):
    """How many draws of the next segment may be drafted at once.

    Attributes:
        least: The minimum.
        most: The maximum; equal to `least` if the number is fixed.
    """

    least: int
    most: int


class DecodingStrategy(Protocol):
    """How drafts become text: by rejection sampling (`stars.py`) or plainly (`baselines.py`)."""

    def num_drafts(self, rollout: Rollout) -> NumDrafts:
        """Return how many draws of the segment may be drafted at once; asked before each draft."""

    def first_draft(self, rollout: Rollout) -> int:
        """Return the attempt number of the next draw of the segment, from 0."""

    def open(self, rollout: Rollout, candidates: Sequence[Candidate]) -> DraftVerification:
        """Start the verification of drafts."""

    def verify(self, verification: DraftVerification) -> SegmentEvent | None:
        """Use the rewards that have arrived.

        Returns:
            The segment that was kept, or the end of the answer; None if neither has happened yet.
            An event ends the verification. So does the use of its last reward.

        Raises:
            RequestError: The request failed.
        """
