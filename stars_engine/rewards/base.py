"""What the loop asks of a reward model, and how one failing input is kept from the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

from stars_engine.errors import is_for_program
from stars_engine.reals import real_number
from stars_engine.rewards.failures import FailurePolicy, Patience, failure
from stars_engine.types import RewardInput, RewardOutcome, Score


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

    It may also have `ends_overdue_calls = True`, if its calls end by themselves in time, and a
    method `end_calls()`, which is called when the engine lets go of it.
    """

    max_concurrency: int
    timeout_s: float | None
    batched: bool


def score_each(
    reward: RewardModel, inputs: Sequence[RewardInput], patience: Patience | None = None
) -> list[RewardOutcome]:
    """Score all inputs in one call; where that fails, each alone, to find the ones that do.

    What then fails is settled by the reward's own `failures`, a `FailurePolicy`; without one it
    ends its request.

    Args:
        reward: The reward model.
        inputs: What it is asked.
        patience: How to wait before it is asked again; the default sleeps.

    Returns:
        A score per input, or the error that input met.
    """
    if not inputs:
        return []
    patience = patience or Patience()
    policy = failures_of(reward)
    ask = partial(_score_all, reward, inputs)
    try:
        return policy.call(ask, patience) if len(inputs) == 1 else ask()
    except BaseException as error:  # reward models are other people's code, and may exit
        if is_for_program(error):
            raise
        if len(inputs) == 1:
            return [settle(reward, error)]
        outcomes = [found for item in inputs for found in score_each(reward, [item], patience)]
        none_failed = all(isinstance(found, Score) and not found.failed for found in outcomes)
        if isinstance(error, WrongCountError) and none_failed:
            # It was no single input's fault: whoever wrote the reward must hear of it.
            return [settle(reward, error, num_calls=1) for _ in inputs]
        return outcomes


def settle(
    reward: RewardModel, error: BaseException, num_calls: int | None = None
) -> RewardOutcome:
    """Turn a failure that is not mended by asking again into what the policy makes of it."""
    policy = failures_of(reward)
    if policy.rejects:
        policy.warn_once(describe(reward), error)
        return Score(math.nan, failed=True)
    return failure(describe(reward), error, num_calls or policy.max_retries + 1)


def failures_of(reward: RewardModel) -> FailurePolicy:
    """Return a reward's policy; to end the request, where it has none of its own."""
    policy: FailurePolicy | None = getattr(reward, "failures", None)
    return policy or FailurePolicy()


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
    try:
        return real_number(value, "a reward")
    except ValueError as error:
        raise TypeError(str(error)) from None


def with_floor(
    value: float, floor: float | None, *, num_tokens: int = 0, truncated: bool = False
) -> Score:
    """Make a score, vetoed if it lies below the floor."""
    vetoed = floor is not None and value < floor
    return Score(value, vetoed=vetoed, num_tokens=num_tokens, truncated=truncated)


def describe(reward: RewardModel) -> str:
    """Name a reward model in messages."""
    return getattr(reward, "name", None) or type(reward).__name__


def _score_all(reward: RewardModel, inputs: Sequence[RewardInput]) -> list[RewardOutcome]:
    scores = reward.score(inputs)
    check_count(scores, inputs)
    return [_as_score(score) for score in scores]


def _as_score(value: Score | float) -> Score:
    if isinstance(value, Score):
        return replace(value, value=as_number(value.value))
    return Score(as_number(value))
