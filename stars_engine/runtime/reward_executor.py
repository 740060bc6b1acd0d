"""Rewards that are other people's code: asked on threads of their own, answered when they like."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from threading import Thread

from stars_engine.rewards.base import (
    OffloadedReward,
    RewardModel,
    describe,
    failures_of,
    score_each,
    settle,
)
from stars_engine.rewards.failures import Patience, RewardTimeoutError
from stars_engine.rewards.reward_requests import Asked, Question, by_reward, single_models
from stars_engine.runtime.worker_pool import Task, WorkerPool, working_for
from stars_engine.types import RewardOutcome

CLOSING_S = 1.0  # how long the end of an engine waits for a reward that is still busy
GRACE_S = 1.0  # for a reward that ends its overdue calls itself


class RewardExecutor:
    """Sends questions to the workers of each reward, and their answers back.

    Args:
        post: Has something done on the engine's thread.
    """

    def __init__(self, post: Callable[[Callable[[], None]], None]) -> None:
        self._post = post
        self._workers: dict[int, tuple[OffloadedReward, WorkerPool]] = {}

    def takes(self, reward: RewardModel) -> bool:
        """Whether a reward model is called on threads of its own."""
        return isinstance(reward, OffloadedReward)

    def ask(self, asked: Sequence[Asked]) -> None:
        """Put questions to rewards that are taken."""
        for reward, questions in by_reward(asked):
            assert isinstance(reward, OffloadedReward)
            for group in _by_asker(questions):
                for part in [group] if reward.batched else [[question] for question in group]:
                    self._submit(reward, part)

    def write_off_overdue(self) -> float | None:
        """RewardOutcome for rewards that take too long; see `WorkerPool`."""
        times = [workers.write_off_overdue() for _, workers in self._workers.values()]
        return min((time for time in times if time is not None), default=None)

    def close(self, reward: RewardModel) -> None:
        """Let the workers of one reward end when they have done what they were given."""
        for single in single_models(reward):
            found, workers = self._workers.pop(id(single), (None, None))
            if workers is not None and found is not None:
                workers.close()
                _end_calls(found)

    def close_all(self, *, wait: bool) -> None:
        """End all workers; wait a little for those that are still busy, or do not."""
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
        """All threads of rewards that were not closed."""
        return [thread for _, pool in tuple(self._workers.values()) for thread in pool.threads]

    @property
    def is_asking(self) -> bool:
        """Whether this is called from one of them, while it computes a reward."""
        return working_for.get() is self

    def _submit(
        self, reward: OffloadedReward, questions: Sequence[Question], *, num_spent: int = 0
    ) -> None:
        """Have questions answered by a worker; `num_spent` calls for them have failed already."""
        if id(reward) not in self._workers:
            name = f"reward-{describe(reward)}"
            workers = WorkerPool(name, reward.max_concurrency, mark=self)
            self._workers[id(reward)] = reward, workers
        _, workers = self._workers[id(reward)]
        asker = questions[0].asker

        def is_wanted() -> bool:
            return not asker.closed and not workers.closing.is_set()

        def ask(task: Task) -> None:
            patience = Patience(
                sleep=partial(task.sleep, workers.closing),
                is_wanted=lambda: is_wanted() and not task.ended,
                num_spent=num_spent,
            )
            answers = score_each(reward, [question.input for question in questions], patience)
            if not task.ended:  # else it was given up, and somebody else answers
                self._post(partial(_reply, questions, answers))

        def ask_again(spent: int) -> None:
            if is_wanted():
                self._submit(reward, questions, num_spent=spent)

        def give_up(task: Task) -> None:
            spent = num_spent + task.num_sleeps + 1
            if spent <= failures_of(reward).max_retries:
                self._post(partial(ask_again, spent))  # another worker: this one still hangs
                return
            error = RewardTimeoutError(reward.timeout_s)
            answers = [settle(reward, error, spent) for _ in questions]
            self._post(partial(_reply, questions, answers))

        timeout_s = reward.timeout_s
        if timeout_s is not None and getattr(reward, "ends_overdue_calls", False):
            timeout_s += GRACE_S
        workers.submit(
            Task(
                ask,
                owner=asker,
                timeout_s=timeout_s,
                on_timeout=give_up,
                is_wanted=lambda: not asker.closed,
            )
        )


def _by_asker(questions: Sequence[Question]) -> list[list[Question]]:
    groups: dict[int, list[Question]] = {}
    for question in questions:
        groups.setdefault(id(question.asker), []).append(question)
    return list(groups.values())


def _reply(questions: Sequence[Question], answers: Sequence[RewardOutcome]) -> None:
    for question, answer in zip(questions, answers, strict=True):
        question.reply(answer)


def _end_calls(reward: OffloadedReward) -> None:
    """Have a reward end what it is doing, if it can."""
    end = getattr(reward, "end_calls", None)
    if end is not None:
        end()
