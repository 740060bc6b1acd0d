"""Rewards that are other people's code: asked on threads of their own, answered when they like."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from threading import Thread

from stars_engine.errors import RewardError
from stars_engine.rewards.base import OffloadedReward, RewardModel, describe, score_each
from stars_engine.rounds import OpenTrial
from stars_engine.runtime.workers import Task, Workers, working_for
from stars_engine.trial import Answer, Trial

CLOSING_S = 1.0  # how long the end of an engine waits for a reward that is still busy


class Offload:
    """Sends questions to the workers of each reward, and their answers back.

    Args:
        post: Has something done on the engine's thread.
    """

    def __init__(self, post: Callable[[Callable[[], None]], None]) -> None:
        self._post = post
        self._workers: dict[int, tuple[OffloadedReward, Workers]] = {}

    def takes(self, reward: RewardModel) -> bool:
        """Whether a reward model is called on threads of its own."""
        return isinstance(reward, OffloadedReward)

    def score(self, item: OpenTrial) -> None:
        """Ask for a trial's rewards."""
        reward, trial = item.entry.reward, item.trial
        assert isinstance(reward, OffloadedReward)
        if id(reward) not in self._workers:
            name = f"reward-{describe(reward)}"
            workers = Workers(name, reward.max_concurrency, mark=self)
            self._workers[id(reward)] = reward, workers
        _, workers = self._workers[id(reward)]
        indices = range(len(trial.inputs))
        for part in [indices] if reward.batched else [[index] for index in indices]:
            workers.submit(self._task(reward, trial, part))

    def write_off_overdue(self) -> float | None:
        """Answer for rewards that take too long; see `Workers`."""
        times = [workers.write_off_overdue() for _, workers in self._workers.values()]
        return min((time for time in times if time is not None), default=None)

    def close(self, reward: RewardModel) -> None:
        """Let the workers of one reward end when they have done what they were given."""
        _, workers = self._workers.pop(id(reward), (None, None))
        if workers is not None:
            workers.close()

    def close_all(self, *, wait: bool) -> None:
        """End all workers; wait a little for those that are still busy, or do not."""
        until_s = time.monotonic() + CLOSING_S if wait else 0.0
        pools = [workers for _, workers in self._workers.values()]
        for workers in pools:
            workers.close()
        if wait:
            for workers in pools:
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

    def _task(self, reward: OffloadedReward, trial: Trial, indices: Sequence[int]) -> Task:
        def ask() -> None:
            answers = score_each(reward, [trial.inputs[index] for index in indices])
            self._post(partial(_note, trial, indices, answers))

        def give_up() -> None:
            error = RewardError(
                f"the reward {describe(reward)} took longer than {reward.timeout_s} s. The request "
                "ends here; others are not affected. Cure: a faster reward, or a larger "
                "FunctionReward(timeout_s=...)"
            )
            self._post(partial(_note, trial, indices, [error] * len(indices)))

        return Task(
            ask,
            owner=trial,
            timeout_s=reward.timeout_s,
            on_timeout=give_up,
            is_wanted=lambda: not trial.closed,
        )


def _note(trial: Trial, indices: Sequence[int], answers: Sequence[Answer]) -> None:
    for index, answer in zip(indices, answers, strict=True):
        trial.answer(index, answer)
