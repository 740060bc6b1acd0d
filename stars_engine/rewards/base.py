"""What the loop asks of a reward model, and how one failing input is kept from the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from stars_engine.errors import RewardError, describe_error, is_ctrl_c
from stars_engine.types import RewardInput


@dataclass(frozen=True, slots=True)
class Score:
    """One reward.

    Attributes:
        value: The reward; a non-finite one rejects its candidate.
        vetoed: True if a floor forbids the candidate whatever the threshold.
        num_tokens: Tokens the reward model read for it.
    """

    value: float
    vetoed: bool = False
    num_tokens: int = 0

    @property
    def eligible(self) -> bool:
        """Whether the candidate may be accepted or forced at all."""
        return math.isfinite(self.value) and not self.vetoed


class RewardModel(Protocol):
    """Scores completions, each as a whole, never a segment alone."""

    def score(self, inputs: Sequence[RewardInput]) -> Sequence[Score | float]:
        """Return one reward per input, in order."""
        ...


@runtime_checkable
class OffloadedReward(RewardModel, Protocol):
    """A reward model that is called on threads of its own, where it may be slow or hang.

    Attributes:
        max_concurrency: Calls at one time.
        timeout_s: Seconds one call may take; None for as long as it likes.
        batched: Whether it wants all candidates of a request in one call, or one in each.
    """

    max_concurrency: int
    timeout_s: float | None
    batched: bool


def score_each(reward: RewardModel, inputs: Sequence[RewardInput]) -> list[Score | RewardError]:
    """Score all inputs in one call; where that fails, each alone, to find the ones that do.

    Returns:
        A score per input, or the error that input met.
    """
    if not inputs:
        return []
    try:
        return _score_all(reward, inputs)
    except BaseException as error:  # reward models are other people's code, and may exit
        if is_ctrl_c(error):
            raise
        if len(inputs) == 1:
            return [_failure(reward, error)]
        outcomes = [outcome for item in inputs for outcome in score_each(reward, [item])]
        none_failed = not any(isinstance(outcome, RewardError) for outcome in outcomes)
        if isinstance(error, WrongCountError) and none_failed:
            # It was no single input's fault: whoever wrote the reward must hear of it.
            return [_failure(reward, error) for _ in inputs]
        return outcomes


class WrongCountError(ValueError):
    """A reward model returned another number of rewards than it was asked for."""


def check_count(rewards: Sequence[object], inputs: Sequence[object]) -> None:
    """Check that there is one reward for each input.

    Raises:
        WrongCountError: There is not.
    """
    if len(rewards) != len(inputs):
        raise WrongCountError(f"returned {len(rewards)} rewards for {len(inputs)} completions")


def as_number(value: Any) -> float:
    """Turn what a reward model returned into a number.

    Raises:
        TypeError: It is none.
    """
    if isinstance(value, str | bytes | None):
        raise TypeError(f"a reward is a number, not {value!r}")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"a reward is a number, not {type(value).__name__}") from None


def with_floor(value: float, floor: float | None, num_tokens: int = 0) -> Score:
    """Make a score, vetoed if it lies below the floor."""
    return Score(value, vetoed=floor is not None and value < floor, num_tokens=num_tokens)


def describe(reward: RewardModel) -> str:
    """Name a reward model in messages."""
    return getattr(reward, "name", None) or type(reward).__name__


def _score_all(reward: RewardModel, inputs: Sequence[RewardInput]) -> list[Score | RewardError]:
    scores = reward.score(inputs)
    check_count(scores, inputs)
    return [_as_score(score) for score in scores]


def _as_score(value: Score | float) -> Score:
    if isinstance(value, Score):
        return replace(value, value=as_number(value.value))
    return Score(as_number(value))


def _failure(reward: RewardModel, error: BaseException) -> RewardError:
    failure = RewardError(
        f"the reward {describe(reward)} failed: {describe_error(error)}. The request "
        "ends here; others are not affected. Cure: mend the reward, or return nan to reject "
        "what it cannot judge"
    )
    failure.__cause__ = error
    return failure
