"""Scores of given texts, computed on the engine's thread between the steps of other requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import NamedTuple

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
from stars_engine.runtime.request_group import RewardSource
from stars_engine.threads.background_threads import BackgroundThreads
from stars_engine.threads.future_outcomes import set_exception, set_result
from stars_engine.types import RewardInput, Score

BATCH = 16  # texts that are scored between two steps, at most
BATCH_TOKENS = 512  # of these texts, unless one is longer
MAX_OPEN = 128  # texts of a job that wait for their rewards

ReadInputs = Callable[[PromptedModel], Sequence[RewardInput]]


class Services(NamedTuple):
    """What jobs need of the engine.

    Attributes:
        get_models: Returns both models; takes the time of the call on the monotonic clock.
        score: Computes rewards now, or on worker threads.
        post: Runs a callable after the next step.
        background: Reads many or long inputs.
    """

    get_models: Callable[[RewardSource, float], tuple[PromptedModel, RewardModel]]
    score: Callable[[Sequence[RoutedRequest]], None]
    post: Callable[[Callable[[], None]], None]
    background: BackgroundThreads


class ScoreJobs:
    """The jobs of an engine that are not done."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._open: set[ScoreJob] = set()

    def start(
        self, source: RewardSource, read: ReadInputs, *, in_background: bool
    ) -> Future[list[Score]]:
        """Start a job from any thread; return a future of the scores, in the order of the inputs.

        Args:
            source: The source of the reward model.
            read: Returns the inputs, which may depend on the models.
            in_background: Whether there are many inputs, or long ones.
        """
        job = ScoreJob(source, read, self._services, in_background=in_background)
        self._open.add(job)
        job.done.add_done_callback(lambda _: self._open.discard(job))
        self._services.post(job.run)
        return job.done

    def fail_all(self, error: Exception) -> None:
        """End all jobs with an error."""
        for job in tuple(self._open):
            set_exception(job.done, error)


class ScoreJob:
    """Scores the inputs of one call. Methods run on the engine's thread.

    Args:
        source: The source of the reward model.
        read: Returns the inputs, which may depend on the models.
        services: Parts of the engine.
        in_background: Whether to read the inputs on another thread.

    Attributes:
        done: The scores in the order of the inputs. Cancelling it ends the job.
        closed: Whether no caller waits for the scores.
    """

    def __init__(
        self, source: RewardSource, read: ReadInputs, services: Services, *, in_background: bool
    ) -> None:
        self.done: Future[list[Score]] = Future()
        self._source, self._read, self._services = source, read, services
        self._in_background = in_background
        self._requested_s = time.monotonic()
        self._inputs: Sequence[RewardInput] = ()
        self._outcomes: list[RewardOutcome | None] = []
        self._next = 0
        self._num_missing = 0
        self._is_posted = False  # whether further inputs are scored after the next step
        self._reward: RewardModel | None = None
        self._reading: Future[Sequence[RewardInput]] | None = None
        self.closed = False
        self.done.add_done_callback(self._close)

    def _close(self, _: Future[list[Score]]) -> None:
        self.closed = True
        if self._reading is not None:
            self._reading.cancel()

    def run(self) -> None:
        """Load the models if necessary, and read the inputs."""
        if self.closed:
            return
        try:
            model, self._reward = self._services.get_models(self._source, self._requested_s)
            _check_reads_texts(self._reward)
            if self._in_background:
                self._reading = self._services.background.submit(partial(self._read, model), self)
                self._reading.add_done_callback(self._post_start)
                return
            inputs = self._read(model)
        except BaseException as error:  # noqa: BLE001 - loading and tokenizers are third-party code
            self._fail(error)
            return
        self._start(inputs)

    def _post_start(self, reading: Future[Sequence[RewardInput]]) -> None:
        """Go on after reading, on any thread."""
        if reading.cancelled():
            return
        error = reading.exception()
        if error is not None:
            self._fail(error)
        else:
            self._services.post(partial(self._start, reading.result()))

    def _start(self, inputs: Sequence[RewardInput]) -> None:
        self._inputs = inputs
        self._outcomes = [None] * len(inputs)
        self._num_missing = len(inputs)
        self._score_some()

    def _score_some(self) -> None:
        self._is_posted = False
        if self.closed:
            return
        if not self._inputs:
            set_result(self.done, [])
            return
        assert self._reward is not None
        asked = [
            RoutedRequest(self._reward, RewardRequest(self._inputs[i], partial(self._set, i), self))
            for i in self._take_some()
        ]
        try:
            self._services.score(split_composites(asked))
        except BaseException as error:  # noqa: BLE001 - reward models are third-party code
            self._fail(error)
        self._go_on()

    def _take_some(self) -> range:
        """Return the positions of the next inputs that are scored together."""
        begin, num_tokens = self._next, 0
        for item in self._inputs[begin : begin + BATCH]:
            num_tokens += len(item.token_ids)
            if self._next > begin and num_tokens > BATCH_TOKENS:
                break
            self._next += 1
        return range(begin, self._next)

    def _go_on(self) -> None:
        """Score further inputs after the next step, unless many wait for their rewards."""
        num_left = len(self._inputs) - self._next
        if num_left and self._num_missing - num_left < MAX_OPEN and not self._is_posted:
            self._is_posted = True
            self._services.post(self._score_some)

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
        else:
            self._go_on()


def _check_reads_texts(reward: RewardModel) -> None:
    if probes_of(reward):
        raise RewardError(
            "this reward reads hidden states while the model drafts, so it cannot score a given "
            "text. Hint: use another reward for scoring"
        )
