"""What happens when a reward fails: end the request, reject the candidate, or retry."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import tenacity

from stars_engine.config.rewards.common import Failing
from stars_engine.errors import RewardError, describe_error, is_for_program
from stars_engine.out_of_memory import clear_locals

logger = logging.getLogger(__name__)

MAX_WAIT_S = 30.0  # longest wait between two calls of a reward that keeps failing

Result = TypeVar("Result")


class RewardTimeoutError(TimeoutError):
    """A reward call exceeded its timeout."""

    def __init__(self, timeout_s: float | None) -> None:
        super().__init__(f"took longer than {timeout_s} s")


class UnwantedError(Exception):
    """Ends a call, or the wait for a retry, whose result is no longer needed."""


def _sleep(seconds: float) -> None:
    if seconds > 0:
        time.sleep(seconds)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How the caller waits between retries.

    Attributes:
        sleep: Sleeps before each retry, for a number of seconds that may be 0.
        is_wanted: Returns whether the result is still needed.
        num_spent: Number of calls that have already failed.
    """

    sleep: Callable[[float], None] = _sleep
    is_wanted: Callable[[], bool] = lambda: True
    num_spent: int = 0


class FailurePolicy:
    """What a reward does when it fails.

    Args:
        on_failure: "raise", "reject" or "retry".
        max_retries: Maximum number of retries if `on_failure` is "retry".
        retry_wait_s: Seconds before the first retry; doubles each time. 0 for rewards that run on
            the engine's thread, because a wait would block the engine.
    """

    def __init__(
        self, on_failure: str = "raise", *, max_retries: int = 0, retry_wait_s: float = 0.0
    ) -> None:
        self.rejects = on_failure == "reject"
        self.max_retries = max_retries if on_failure == "retry" else 0
        self._retry_wait_s = retry_wait_s
        self._has_warned = False

    @classmethod
    def of(cls, config: Failing, *, retry_wait_s: float = 0.0) -> FailurePolicy:
        """Return the policy that a config object describes."""
        return cls(config.on_failure, max_retries=config.max_retries, retry_wait_s=retry_wait_s)

    def call(self, ask: Callable[[], Result], retry_policy: RetryPolicy) -> Result:
        """Call `ask`, with retries if the policy has any, and raise the last error."""
        num_calls = self.max_retries + 1 - retry_policy.num_spent
        if num_calls <= 1:
            return ask()

        def sleep(seconds: float) -> None:
            if retry_policy.is_wanted():
                retry_policy.sleep(seconds)
            if not retry_policy.is_wanted():
                raise UnwantedError("this reward is no longer needed")

        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(num_calls),
            wait=tenacity.wait_exponential(multiplier=self._retry_wait_s, max=MAX_WAIT_S),
            sleep=sleep,
            retry=tenacity.retry_if_exception(lambda error: not is_for_program(error)),
            reraise=True,
        )
        return retrying(ask)

    def warn_once(self, name: str, error: BaseException) -> None:
        """Log that candidates without a reward are rejected."""
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "Reward %s failed (%s); candidates without a reward are rejected "
                "(on_failure='reject'; see usage.num_reward_failures)",
                name,
                describe_error(error),
            )


def failure(name: str, error: BaseException, num_calls: int = 1) -> RewardError:
    """Return the error that ends a request whose reward failed."""
    often = f" {num_calls} times" if num_calls > 1 else ""
    if isinstance(error, RewardTimeoutError):
        said = f"the reward {name} {error}{often}"
        hint = "use a faster reward, or a larger FunctionReward(timeout_s=...)"
    else:
        said = f"the reward {name} failed{often}: {describe_error(error)}"
        hint = "fix the reward model, or return nan to reject completions that it cannot score"
    wrapped = RewardError(
        f"{said}. This request ends; others are not affected. Hint: {hint}; "
        "on_failure='reject' rejects such candidates instead, and 'retry' calls the reward again"
    )
    clear_locals(error)  # callers may keep the error
    wrapped.__cause__ = error
    return wrapped
