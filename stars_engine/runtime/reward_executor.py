"""Run offloaded rewards, which are third-party code, on worker threads."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from threading import Thread

from stars_engine.errors import RewardOutcome, is_for_program
from stars_engine.protocols import read_optional
from stars_engine.rewards.base import (
    OffloadedReward,
    RewardModel,
    apply_failure_policy,
    describe,
    failures_of,
    is_offloaded,
    score_each,
)
from stars_engine.rewards.event_loop import GRACE_S, set_cancel, set_time_limit
from stars_engine.rewards.failures import RetryPolicy, RewardTimeoutError, failure
from stars_engine.rewards.offloading import Offloading, offloading_of
from stars_engine.rewards.reward_requests import (
    RewardRequest,
    RoutedRequest,
    by_reward,
    single_models,
)
from stars_engine.threads.worker_pool import Task, WorkerPool, current_executor

logger = logging.getLogger(__name__)

CLOSING_S = 1.0  # how long closing an engine waits for rewards that are still busy


class RewardExecutor:
    """Submits reward requests to the workers of each reward, and delivers the outcomes.

    Args:
        post: Runs a callable on the engine's thread.
    """

    def __init__(self, post: Callable[[Callable[[], None]], None]) -> None:
        self._post = post
        self._workers: dict[int, tuple[OffloadedReward, WorkerPool]] = {}

    def submit(self, asked: Sequence[RoutedRequest]) -> list[RoutedRequest]:
        """Submit requests for offloaded rewards, or answer with an error; return the others."""
        others: list[RoutedRequest] = []
        for reward, requests in by_reward(asked):
            if not is_offloaded(reward):
                others += [RoutedRequest(reward, request) for request in requests]
                continue
            for group in _by_requester(requests):
                with _answering(reward, group):
                    how = offloading_of(reward)
                    for part in [group] if how.batched else [[request] for request in group]:
                        self._submit(reward, how, part)
        return others

    def expire_overdue(self) -> float | None:
        """Give up reward calls that take too long; see `WorkerPool.expire_overdue`."""
        times = [workers.expire_overdue() for _, workers in self._workers.values()]
        return min((time for time in times if time is not None), default=None)

    def close(self, reward: RewardModel) -> None:
        """End the workers of one reward after their current tasks."""
        for single in single_models(reward):
            found, workers = self._workers.pop(id(single), (None, None))
            if workers is not None and found is not None:
                workers.close()
                _end_calls(found)

    def close_all(self, *, wait: bool) -> None:
        """End all workers; if `wait`, wait up to `CLOSING_S` for those that are busy."""
        until_s = time.monotonic() + CLOSING_S if wait else 0.0
        pools = list(self._workers.values())
        for reward, workers in pools:
            workers.close()
            _end_calls(reward)
        if wait:
            for _, workers in pools:
                workers.join(until_s)
            self._workers.clear()

    @property
    def threads(self) -> list[Thread]:
        """All threads of rewards that are not closed, those of their event loops included."""
        pools = tuple(self._workers.values())
        own = [thread for reward, _ in pools for thread in _own_threads(reward)]
        return [*own, *(thread for _, pool in pools for thread in pool.threads)]

    @property
    def called_from_reward(self) -> bool:
        """Whether the current thread is computing a reward for this executor."""
        return current_executor.get() is self

    def _workers_of(self, reward: OffloadedReward, max_workers: int) -> WorkerPool:
        if id(reward) not in self._workers:
            workers = WorkerPool(f"reward-{describe(reward)}", max_workers, mark=self)
            self._workers[id(reward)] = reward, workers
        return self._workers[id(reward)][1]

    def _submit(
        self,
        reward: OffloadedReward,
        how: Offloading,
        requests: Sequence[RewardRequest],
        *,
        num_spent: int = 0,
    ) -> None:
        """Submit requests to a worker; `num_spent` calls for them have failed already."""
        workers = self._workers_of(reward, how.max_concurrency)
        requester = requests[0].requester

        def is_wanted() -> bool:
            return not requester.closed and not workers.closing.is_set()

        def score(task: Task) -> None:
            set_time_limit.set(task.set_time_limit)
            set_cancel.set(task.set_cancel)
            retry_policy = RetryPolicy(
                sleep=partial(task.sleep, workers.closing),
                is_wanted=lambda: is_wanted() and not task.ended,
                num_spent=num_spent,
            )
            answers = score_each(reward, [request.input for request in requests], retry_policy)
            if not task.ended:  # an overdue task is answered by `give_up`
                self._post(partial(_reply, requests, answers))

        def retry(num_failed: int) -> None:
            if is_wanted():
                with _answering(reward, requests):
                    self._submit(reward, how, requests, num_spent=num_failed)

        def give_up(task: Task) -> None:
            if requester.closed:
                return
            with _answering(reward, requests):
                spent = num_spent + task.num_sleeps + 1
                if spent <= failures_of(reward).max_retries:
                    self._post(partial(retry, spent))  # on another worker: this one still hangs
                    return
                error = RewardTimeoutError(how.timeout_s)
                answers = [apply_failure_policy(reward, error, spent) for _ in requests]
                self._post(partial(_reply, requests, answers))

        timeout_s = how.timeout_s
        if timeout_s is not None and how.ends_overdue_calls:
            timeout_s += GRACE_S
        workers.submit(
            Task(
                score,
                owner=requester,
                timeout_s=timeout_s,
                on_timeout=give_up,
                is_wanted=lambda: not requester.closed,
            )
        )


def _by_requester(requests: Sequence[RewardRequest]) -> list[list[RewardRequest]]:
    groups: dict[int, list[RewardRequest]] = {}
    for request in requests:
        groups.setdefault(id(request.requester), []).append(request)
    return list(groups.values())


def _reply(requests: Sequence[RewardRequest], answers: Sequence[RewardOutcome]) -> None:
    for request, answer in zip(requests, answers, strict=True):
        request.reply(answer)


@contextmanager
def _answering(reward: RewardModel, requests: Sequence[RewardRequest]) -> Iterator[None]:
    """Answer requests with an error of their reward model, which may be third-party code."""
    try:
        yield
    except BaseException as error:
        if is_for_program(error):
            raise
        answer = failure(describe(reward), error)
        for request in requests:
            request.reply(answer)


def _own_threads(reward: RewardModel) -> list[Thread]:
    found = read_optional(reward, "threads")
    return [each for each in found if isinstance(each, Thread)] if isinstance(found, list) else []


def _end_calls(reward: OffloadedReward) -> None:
    """End the calls in progress of a reward that supports it."""
    try:
        end = getattr(reward, "end_calls", None)
        if end is not None:
            end()
    except BaseException as error:  # rewards are third-party code
        if is_for_program(error):
            raise
        logger.warning("end_calls of %s failed", describe(reward), exc_info=True)
