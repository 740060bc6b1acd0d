"""Scores of given texts, computed on the engine's thread between the steps of other requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

from stars_engine.backends.base import PromptedModel
from stars_engine.core.request_errors import as_request_error
from stars_engine.errors import RewardError, RewardOutcome
from stars_engine.rewards.base import RewardModel
from stars_engine.rewards.reward_requests import (
    RewardRequest,
    RoutedRequest,
    probes_of,
    split_composites,
)
from stars_engine.runtime.futures import set_exception, set_result
from stars_engine.runtime.request_group import RewardSource
from stars_engine.types import RewardInput, Score

BATCH = 16  # texts that are scored between two steps


class ScoreJob:
    """Scores the inputs of one call. Methods run on the engine's thread.

    Args:
        source: The source of the reward model.
        read: Returns the inputs, which may depend on the models.
        get_models: Returns both models; takes the time of the call on the monotonic clock.
        score: Computes rewards now, or on worker threads.
        post: Runs a callable after the next step.

    Attributes:
        done: The scores in the order of the inputs. Cancelling it ends the job.
        closed: Whether no caller waits for the scores.
    """

    def __init__(
        self,
        source: RewardSource,
        read: Callable[[PromptedModel], Sequence[RewardInput]],
        *,
        get_models: Callable[[RewardSource, float], tuple[PromptedModel, RewardModel]],
        score: Callable[[Sequence[RoutedRequest]], None],
        post: Callable[[Callable[[], None]], None],
    ) -> None:
        self.done: Future[list[Score]] = Future()
        self._source, self._read = source, read
        self._get_models, self._score, self._post = get_models, score, post
        self._requested_s = time.monotonic()
        self._inputs: Sequence[RewardInput] = ()
        self._outcomes: list[RewardOutcome | None] = []
        self._next = 0
        self._num_missing = 0
        self._reward: RewardModel | None = None
        self.closed = False
        self.done.add_done_callback(self._close)

    def _close(self, _: Future[list[Score]]) -> None:
        self.closed = True

    def run(self) -> None:
        """Load the models if necessary, and score the first inputs."""
        try:
            model, self._reward = self._get_models(self._source, self._requested_s)
            _check_reads_texts(self._reward)
            self._inputs = self._read(model)
        except BaseException as error:  # noqa: BLE001 - loading and tokenizers are third-party code
            self._fail(error)
            return
        self._outcomes = [None] * len(self._inputs)
        self._num_missing = len(self._inputs)
        self._score_some()

    def _score_some(self) -> None:
        if self.closed:
            return
        if not self._inputs:
            set_result(self.done, [])
            return
        begin, self._next = self._next, min(self._next + BATCH, len(self._inputs))
        assert self._reward is not None
        asked = [
            RoutedRequest(self._reward, RewardRequest(self._inputs[i], partial(self._set, i), self))
            for i in range(begin, self._next)
        ]
        try:
            self._score(split_composites(asked))
        except BaseException as error:  # noqa: BLE001 - reward models are third-party code
            self._fail(error)
        if self._next < len(self._inputs):
            self._post(self._score_some)

    def _fail(self, error: BaseException) -> None:
        """End the job; an exit of third-party code becomes an ordinary error."""
        is_ordinary = isinstance(error, Exception)
        set_exception(self.done, error if is_ordinary else as_request_error(error, "scoring"))

    def _set(self, index: int, outcome: RewardOutcome) -> None:
        """Set the outcome of one input; only the first call counts."""
        if self._outcomes[index] is not None:
            return
        self._outcomes[index] = outcome
        self._num_missing -= 1
        if isinstance(outcome, RewardError):
            set_exception(self.done, outcome)
        elif self._num_missing == 0:
            set_result(self.done, [item for item in self._outcomes if isinstance(item, Score)])


def _check_reads_texts(reward: RewardModel) -> None:
    if probes_of(reward):
        raise RewardError(
            "this reward reads hidden states while the model drafts, so it cannot score a given "
            "text. Hint: use another reward for scoring"
        )
