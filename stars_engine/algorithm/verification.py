"""Drafts of one segment on trial: what is asked of the reward model, and what it has answered."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, Protocol

from stars_engine.algorithm.candidate import Candidate
from stars_engine.algorithm.rollout import Rollout
from stars_engine.rewards.base import Answer
from stars_engine.rewards.reward_requests import Question
from stars_engine.types import RewardInput, SegmentEvent


class Trial:
    """Candidates of one rollout's next segment, waiting for their rewards.

    Answers may come in any order and at any time; they are *used* in index order.

    Args:
        rollout: Whose segment it is.
        candidates: Its drafts, in the order of their attempts.
        inputs: What the reward model is asked, in order. The last ones are the candidates'; one
            before them asks about the prompt alone.
        passed: A further candidate that need not be judged, should these be rejected.

    Attributes:
        closed: Whether further answers are of no use.
    """

    __slots__ = ("_answers", "_num_used", "candidates", "closed", "inputs", "passed", "rollout")

    def __init__(
        self,
        rollout: Rollout,
        candidates: Sequence[Candidate],
        inputs: Sequence[RewardInput],
        passed: Candidate | None = None,
    ) -> None:
        self.rollout = rollout
        self.passed = passed
        self.candidates = candidates
        self.inputs = inputs
        self._answers: list[Answer | None] = [None] * len(inputs)
        self._num_used = 0
        self.closed = False

    def questions(self) -> list[Question]:
        """Return what is still to be asked, in order."""
        return [
            Question(item, partial(self.answer, index), self)
            for index, item in enumerate(self.inputs)
            if self._answers[index] is None
        ]

    def extended(self, candidates: Sequence[Candidate], inputs: Sequence[RewardInput]) -> Trial:
        """Return a trial of these candidates and further ones, with the answers there are.

        It takes this one's place, which is closed.
        """
        self.closed = True
        longer = Trial(self.rollout, [*self.candidates, *candidates], [*self.inputs, *inputs])
        longer._answers[: len(self._answers)] = self._answers
        longer._num_used = self._num_used
        return longer

    def answer(self, index: int, outcome: Answer) -> None:
        """Note the reward, or the error, that `inputs[index]` met; only the first one counts."""
        if self.closed or self._answers[index] is not None:
            return
        self._answers[index] = outcome
        if index >= len(self.inputs) - len(self.candidates):
            self.rollout.count(num_surplus_rewards=1)  # until it is looked at

    def next_answer(self) -> Answer | None:
        """Use up and return the next answer in index order; None if it is not there (yet)."""
        if self.all_used or self._answers[self._num_used] is None:
            return None
        self._num_used += 1
        return self._answers[self._num_used - 1]

    @property
    def answers(self) -> Sequence[Answer | None]:
        """What is known so far, used or not, in the order of `inputs`."""
        return self._answers

    @property
    def num_used(self) -> int:
        """How many answers have been used."""
        return self._num_used

    @property
    def all_there(self) -> bool:
        """Whether no answer is missing."""
        return None not in self._answers

    @property
    def all_used(self) -> bool:
        """Whether every answer has been used."""
        return self._num_used == len(self._answers)

    @property
    def candidate(self) -> Candidate:
        """The candidate that the answer used last is about."""
        return self.candidates[self._num_used - 1 - len(self.inputs) + len(self.candidates)]


class NumDrafts(NamedTuple):
    """How many draws of the next segment may be made together.

    Attributes:
        least: In any case.
        most: At most; the same if there is no choice.
        sure: Whether the rollout moves on by them, whatever their rewards.
    """

    least: int
    most: int
    sure: bool = False


class Decoding(Protocol):
    """How drafts become text: by rejection sampling (`loop.py`), or plainly (`baselines.py`)."""

    def expect(self, num_rollouts: int) -> None:
        """Note how many rollouts will come, before the first does."""
        ...

    def num_drafts(self, rollout: Rollout) -> NumDrafts:
        """Return how many draws of the next segment to make together."""
        ...

    def first_draft(self, rollout: Rollout) -> int:
        """Return which draw of the next segment the first of them is, from 0."""
        ...

    def open(self, rollout: Rollout, candidates: Sequence[Candidate]) -> Trial:
        """Put drafts on trial."""
        ...

    def walk(self, trial: Trial) -> SegmentEvent | None:
        """Use the answers that are there; a trial that it closes has no more to say.

        Returns:
            The segment kept or the answer's end; None if neither has come about.

        Raises:
            RequestError: The request failed.
        """
        ...
