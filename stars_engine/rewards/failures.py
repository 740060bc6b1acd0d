"""What happens when a reward fails: the request ends, the candidate is rejected, or asked again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import tenacity

from stars_engine.config.rewards.common import Failing
from stars_engine.errors import RewardError, describe_error

logger = logging.getLogger(__name__)

MAX_WAIT_S = 30.0  # between two calls of a reward that keeps failing

Result = TypeVar("Result")


class RewardTimeoutError(TimeoutError):
    """A call of a reward took longer than it may."""

    def __init__(self, timeout_s: float | None) -> None:
        super().__init__(f"took longer than {timeout_s} s")


class _UnwantedError(Exception):
    """Ends the wait for a second call whose answer is of no use any more."""


def _sleep(seconds: float) -> None:
    if seconds > 0:
        time.sleep(seconds)


@dataclass(frozen=True, slots=True)
class Patience:
    """How to wait between two calls, by who waits.

    Attributes:
        sleep: Sleeps for some seconds, or none, before each further call.
        is_wanted: Whether an answer is still of use.
        num_spent: Calls that have failed before.
    """

    sleep: Callable[[float], None] = _sleep
    is_wanted: Callable[[], bool] = lambda: True
    num_spent: int = 0


class FailurePolicy:
    """A reward's answer to its own failures.

    Args:
        on_failure: "raise", "reject" or "retry".
        max_retries: Further calls, of "retry".
        retry_wait_s: Seconds before the first of them, doubled each time; 0 for rewards that run
            on the engine's thread, where nothing could happen meanwhile.
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
        """Return what a config object says."""
        return cls(config.on_failure, max_retries=config.max_retries, retry_wait_s=retry_wait_s)

    def call(self, ask: Callable[[], Result], patience: Patience) -> Result:
        """Call, and call again if it fails and the policy says so; the last error is raised."""
        num_calls = self.max_retries + 1 - patience.num_spent
        if num_calls <= 1:
            return ask()

        def sleep(seconds: float) -> None:
            if patience.is_wanted():
                patience.sleep(seconds)
            if not patience.is_wanted():
                raise _UnwantedError("nobody waits for this reward any more")

        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(num_calls),
            wait=tenacity.wait_exponential(multiplier=self._retry_wait_s, max=MAX_WAIT_S),
            sleep=sleep,
            reraise=True,
        )
        return retrying(ask)

    def warn_once(self, name: str, error: BaseException) -> None:
        """Tell the log that candidates are rejected for want of a reward."""
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "the reward %s failed (%s); its candidate is rejected, and so will be others "
                "(on_failure='reject'; usage.num_reward_failures counts them)",
                name,
                describe_error(error),
            )


def failure(name: str, error: BaseException, num_calls: int = 1) -> RewardError:
    """Return the error that ends the request of a reward that failed."""
    often = f" {num_calls} times" if num_calls > 1 else ""
    if isinstance(error, RewardTimeoutError):
        said = f"the reward {name} {error}{often}"
        hint = "a faster reward, or a larger FunctionReward(timeout_s=...)"
    else:
        said = f"the reward {name} failed{often}: {describe_error(error)}"
        hint = "mend the reward, or return nan to reject what it cannot judge"
    wrapped = RewardError(
        f"{said}. The request ends here; others are not affected. Hint: {hint}; "
        "on_failure='reject' rejects such candidates instead, 'retry' asks again"
    )
    wrapped.__cause__ = error
    return wrapped
