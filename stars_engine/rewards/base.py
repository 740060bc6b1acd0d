"""The interface of reward models, and scoring that isolates inputs that fail."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from operator import index
from typing import Any, Protocol, TypeGuard

from stars_engine.errors import RewardError, RewardOutcome, ServerError, is_for_program
from stars_engine.protocols import has_members, read_optional
from stars_engine.rewards.failures import FailurePolicy, RetryPolicy, failure
from stars_engine.scalars import real_number
from stars_engine.types import RewardInput, Score

_MAX_NAME = 200  # characters


class RewardModel(Protocol):
    """Scores completions, each as a whole, never a segment alone."""

    def score(self, inputs: Sequence[RewardInput]) -> Sequence[Score | float]:
        """Return one reward per input, in order."""


class OffloadedReward(RewardModel, Protocol):
    """A reward model that runs on worker threads, because it may be slow or hang.

    Attributes:
        max_concurrency: Maximum number of concurrent calls.
        timeout_s: Maximum duration of a call in seconds; None for no limit.
        batched: Whether one call scores all candidates of a request; otherwise one call scores
            one candidate.

    Three members are optional: `ends_overdue_calls = True` if the reward ends overdue calls itself;
    `end_calls()`, which the engine calls when it releases the reward; and `is_timed = True` if the
    duration of its calls may tell the engine how many candidates to draft.
    """

    max_concurrency: int
    timeout_s: float | None
    batched: bool


def is_offloaded(reward: RewardModel) -> TypeGuard[OffloadedReward]:
    """Return whether a reward model implements `OffloadedReward`."""
    return has_members(reward, OffloadedReward)


def score_each(
    reward: RewardModel, inputs: Sequence[RewardInput], retry_policy: RetryPolicy | None = None
) -> list[RewardOutcome]:
    """Score all inputs in one call; if the call fails, score each input alone.

    Inputs are not scored alone if a server did not answer in time, or if nobody waits any more.

    The reward's `failures`, a `FailurePolicy`, decides what happens to inputs that fail alone.
    Without a policy, a failure ends the request. So does a policy that cannot be read.

    Args:
        reward: The reward model.
        inputs: The inputs to score.
        retry_policy: How to wait between retries; the default sleeps.

    Returns:
        One score or error per input.
    """
    if not inputs:
        return []
    try:
        return _score_each(reward, inputs, retry_policy or RetryPolicy())
    except BaseException as error:  # reward models are third-party code
        if is_for_program(error):
            raise
        if len(inputs) == 1:
            return [failure(describe(reward), error)]
        return [found for item in inputs for found in score_each(reward, [item], retry_policy)]


def _score_each(
    reward: RewardModel, inputs: Sequence[RewardInput], retry_policy: RetryPolicy
) -> list[RewardOutcome]:
    policy = failures_of(reward)
    ask = partial(_score_all, reward, inputs)
    try:
        return policy.call(ask, retry_policy) if len(inputs) == 1 else ask()
    except BaseException as error:  # reward models are third-party code, and may exit
        if is_for_program(error):
            raise
        if not retry_policy.is_wanted():
            return [failure(describe(reward), error) for _ in inputs]
        is_late = isinstance(error, ServerError) and error.fault == "timeout"
        if len(inputs) == 1 or (is_late and not policy.max_retries):
            return [apply_failure_policy(reward, error) for _ in inputs]
        outcomes = [found for item in inputs for found in score_each(reward, [item], retry_policy)]
        none_failed = all(isinstance(found, Score) and not found.failed for found in outcomes)
        if isinstance(error, WrongCountError) and none_failed:
            # No single input is at fault, so report the error to the author of the reward.
            return [apply_failure_policy(reward, error, num_calls=1) for _ in inputs]
        return outcomes


def score_values(reward: RewardModel, inputs: Sequence[RewardInput]) -> list[float]:
    """Return the rewards of all inputs as numbers.

    Raises:
        RewardError: An input failed.
    """
    values = []
    for outcome in score_each(reward, inputs):
        if isinstance(outcome, RewardError):
            raise outcome
        values.append(outcome.value)
    return values


def apply_failure_policy(
    reward: RewardModel, error: BaseException, num_calls: int | None = None
) -> RewardOutcome:
    """Return the outcome of a failure once there are no more retries."""
    policy = failures_of(reward)
    if policy.rejects:
        policy.warn_once(describe(reward), error)
        return Score(math.nan, failed=True)
    return failure(describe(reward), error, num_calls or policy.max_retries + 1)


def failures_of(reward: RewardModel) -> FailurePolicy:
    """Return a reward's failure policy; by default, a failure ends the request."""
    policy = getattr(reward, "failures", None)
    return policy if isinstance(policy, FailurePolicy) else FailurePolicy()


class WrongCountError(ValueError):
    """A reward model returned the wrong number of rewards."""


def check_count(rewards: Sequence[object], inputs: Sequence[object]) -> None:
    """Check that there is one reward for each input.

    Raises:
        WrongCountError: The counts differ.
    """
    if len(rewards) != len(inputs):
        raise WrongCountError(f"returned {len(rewards)} rewards for {len(inputs)} completions")


def as_number(value: Any) -> float:
    """Convert the return value of a reward model to a number.

    Raises:
        TypeError: The value is not a number.
    """
    try:
        return real_number(value, "a reward")
    except ValueError as error:
        raise TypeError(str(error)) from None


def with_floor(
    value: float, floor: float | None, *, num_tokens: int = 0, truncated: bool = False
) -> Score:
    """Return a score, vetoed if it is below the floor."""
    vetoed = floor is not None and value < floor
    return Score(value, vetoed=vetoed, num_tokens=num_tokens, truncated=truncated)


def describe(reward: RewardModel) -> str:
    """Return the name of a reward model for messages."""
    name = read_optional(reward, "name")
    return name[:_MAX_NAME] if name and isinstance(name, str) else type(reward).__name__


def _score_all(reward: RewardModel, inputs: Sequence[RewardInput]) -> list[RewardOutcome]:
    scores = reward.score(inputs)
    check_count(scores, inputs)
    return [_as_score(score) for score in scores]


def _as_score(value: Score | float) -> Score:
    if not isinstance(value, Score):
        return Score(as_number(value))
    num_tokens = index(value.num_tokens)
    if num_tokens < 0:
        raise ValueError(f"Score.num_tokens={num_tokens} is not allowed; allowed: 0 or more")
    if not isinstance(value.parts, Mapping | None):
        raise TypeError(f"Score.parts must be a mapping or None, not {type(value.parts).__name__}")
    return Score(
        as_number(value.value),
        bool(value.vetoed),
        num_tokens,
        bool(value.failed),
        bool(value.truncated),
        None if value.parts is None else {str(name): _part(v) for name, v in value.parts.items()},
    )


def _part(value: Any) -> float | None:
    return None if value is None else as_number(value)
