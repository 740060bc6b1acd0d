"""The loop of the engine's thread, which alone uses the models.

It takes in requests, calls `EngineCore.step`, and hands events and answers to callers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from threading import Event

from stars_engine.algorithm.rollout import Rollout
from stars_engine.backends.base import PromptedModel
from stars_engine.config import EngineParams
from stars_engine.core.autotune.autotuner import CandidateAutotuner
from stars_engine.core.drafter import model_failed
from stars_engine.core.engine_core import EngineCore
from stars_engine.core.request import RequestQueue
from stars_engine.errors import Interrupted
from stars_engine.rewards.base import RewardModel
from stars_engine.rewards.reward_requests import RoutedRequest
from stars_engine.runtime.active_answers import ActiveAnswers
from stars_engine.runtime.admission_queue import AdmissionQueue
from stars_engine.runtime.core_factory import new_core
from stars_engine.runtime.input_processor import InputProcessor
from stars_engine.runtime.models import Models
from stars_engine.runtime.request_group import RequestGroup, RewardSource, engine_closed_error
from stars_engine.runtime.reward_executor import RewardExecutor
from stars_engine.runtime.score_job import ScoreJobs, Services
from stars_engine.runtime.score_queue import ScoreQueue
from stars_engine.runtime.stats import EngineStats, server_counts
from stars_engine.runtime.time_slices import TimeSlices, slice_s
from stars_engine.threads.background_threads import BackgroundThreads
from stars_engine.threads.future_outcomes import set_exception, set_result
from stars_engine.types import FinishReason

logger = logging.getLogger(__name__)

DEADLINE_CHECK_S = 0.02  # between two checks of deadlines, while there is work
LOOP_CHECK_S = 1.0  # between two checks whether an event loop is closed, without work
MAX_WAIT_S = 3600.0  # upper bound of a wait, since locks do not accept infinity
MAX_FAILURES = 10  # consecutive failures without a request before the engine ends


class EngineLoop:
    """The loop of the engine's thread. Methods run on that thread unless marked otherwise.

    Args:
        load: Loads the language model.
        params: Limits of the engine.
        sweep: Unloads unused models, and returns after how many seconds to call it again.
    """

    def __init__(
        self,
        load: Callable[[], PromptedModel],
        params: EngineParams,
        *,
        sweep: Callable[[], float | None],
    ) -> None:
        self._sweep = sweep
        self._models = Models(load, max_cache_bytes=params.max_cache_bytes)
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.admission = AdmissionQueue(
            params.max_waiting, lambda group: self.post(partial(self._on_first_admitted, group))
        )
        self.background = BackgroundThreads("prepare", max_workers=2, is_busy=lambda: self._is_busy)
        self._answers = ActiveAnswers(self._abort, self.admission.drop)
        self._inputs = InputProcessor(
            self.admission,
            self.get_models,
            self._enqueue,
            self._answers.cancel_started,
            params=params,
            background=self.background,
            post=self.post,
        )
        self._slices = TimeSlices()
        self._groups: set[RequestGroup] = set()  # admitted and not done
        self._core: EngineCore | None = None
        self._new_core = partial(
            new_core,
            params=params,
            scorer=self.score,
            autotuner=CandidateAutotuner(),
            post=self.post,
        )
        self._num_steps = 0  # of earlier cores, which failed or were closed
        self._is_busy = False  # whether a step is running or follows
        self.reward_executor = RewardExecutor(self.post)
        self._scores = ScoreQueue()
        services = Services(self.get_models, self.score, self.post, self.background)
        self.score_jobs = ScoreJobs(services)
        self._stop = Event()
        self._immediately = False
        self._next_check_s = 0.0
        self._num_failures = 0
        self._cause: BaseException | None = None  # of its end, unless it was asked to stop

    # --- from any thread ---

    def post(self, message: Callable[[], None]) -> None:
        """Run a callable on the engine's thread, between two steps."""
        self._inbox.put(message)

    def stop(self, *, at_once: bool) -> None:
        """Stop after the current step, or during it if `at_once`; requests fail."""
        self._immediately = self._immediately or at_once
        self._stop.set()
        self.post(lambda: None)
        if at_once:
            self._models.interrupt()

    def loaded(self, source: RewardSource) -> tuple[PromptedModel, RewardModel] | None:
        """Return both models if they are loaded."""
        return self._models.peek(source.key)

    def stats(self) -> EngineStats:
        """Return the current state and the totals."""
        core = self._core
        return EngineStats(
            num_in_line=self.admission.num_in_line,
            num_waiting=self.admission.num_admitted,
            num_active=len(core.scheduler.in_progress) if core else 0,
            num_rows=core.scheduler.num_ready_rows if core else 0,
            num_steps=self._num_steps + (core.num_steps if core else 0),
            num_loads=self._models.num_loads,
            **server_counts(self._models.loaded),
            memory_bytes=self._models.memory_usage(),
            **self._answers.totals.snapshot(),
        )

    # --- the thread ---

    def run(self) -> None:
        """Run until stopped."""
        step_s = None
        while not self._stop.is_set():
            try:
                self._read_inbox()
                until_s = time.monotonic() + slice_s(step_s)
                self._inputs.read(until_s)
                self._slices.run(until_s)
                self._scores.run(beside_steps=self._is_busy)
                step_s = self._step(self._core)
            except (Exception, Interrupted) as error:  # noqa: BLE001 - `_recover` reports it
                if not self._stop.is_set():
                    self._recover(error)
            else:
                self._num_failures = 0

    def _step(self, core: EngineCore | None) -> float | None:
        """Run one step, and return its seconds; None if there is no work, or if a model fails."""
        started_s, self._is_busy = time.monotonic(), core is not None and core.has_work()
        try:
            events = [] if core is None else core.step()
        except BaseException as error:  # noqa: BLE001 - `_recover` reports it
            if not self._stop.is_set():  # else, the error is `Interrupted`
                self._recover(error)
            return None
        self._answers.deliver(events)
        self._is_busy = core is not None and core.has_work()
        return time.monotonic() - started_s if self._is_busy else None

    def _read_inbox(self) -> None:
        """Run posted callables; wait for one if there is no other work.

        What they post runs after the next step.
        """
        with suppress(Empty):
            message = self._inbox.get(timeout=self._wait_s())
            for _ in range(self._inbox.qsize()):
                message()
                message = self._inbox.get_nowait()
            message()

    def _wait_s(self) -> float:
        """Check deadlines if due; return how long to wait for messages, 0 if there is work."""
        has_work = any(each.has_work for each in (self._inputs, self._slices, self._scores))
        if not has_work and not (self._core and self._core.has_work()):
            wait_s = self._check_deadlines()
            return 0.0 if self._slices.has_work else wait_s
        if time.monotonic() >= self._next_check_s:
            self._check_deadlines()
        return 0.0

    def _check_deadlines(self) -> float:
        """End requests past their deadline; return after how many seconds to check again."""
        self._next_check_s = time.monotonic() + DEADLINE_CHECK_S
        self._groups = {group for group in self._groups if not group.future.done()}
        times = [MAX_WAIT_S, self._sweep()]
        for group in [*self.admission.unadmitted_groups, *self._groups]:
            if group.is_abandoned is not None:
                times.append(LOOP_CHECK_S)
                if group.is_abandoned():
                    self.end_group(group)
        now_s = time.monotonic()
        deadlines: list[float | None] = []
        for group in self.admission.unadmitted_groups:
            if group.expires_at_s <= now_s:
                self.end_group(group, "deadline")
            deadlines.append(group.expires_at_s)
        for group in self._groups:
            next_s = group.next_expiry_s
            if next_s is not None and next_s <= now_s:
                self._slices.add(self._answers.end_overdue(group, now_s))
            else:
                deadlines.append(next_s)
        if self._core is not None:
            self._core.end_overdue()
            self._answers.deliver(self._core.take_events())
            deadlines.append(self._core.next_expiry_s)
        times.append(self.reward_executor.expire_overdue())  # after requests have ended
        times += [None if each is None else each - now_s for each in deadlines]
        return max(0.0, min(seconds for seconds in times if seconds is not None))

    # --- request groups ---

    def load(self, source: RewardSource, requested_s: float, done: Future[object]) -> None:
        """Load both models and resolve the future."""
        try:
            set_result(done, self.get_models(source, requested_s))
        except Exception as error:  # noqa: BLE001 - loading runs third-party code
            set_exception(done, error)

    def unload_reward(self, key: str) -> None:
        """Unload a reward model that no handle and no request uses."""
        reward = self._models.unload(key)
        if reward is not None:
            self.reward_executor.close(reward)

    def end_group(self, group: RequestGroup, reason: FinishReason = "cancelled") -> None:
        """End the requests of a group; the accepted text is their answer."""
        self.admission.remove(group)
        if group.ended or group.is_complete:
            return
        group.ended = True
        self._inputs.abort(group)
        group.clear_queue()
        for output in tuple(group.outputs):
            self._answers.end(output, reason)
        if group.future.done() or group.is_taken_over:
            self._answers.totals.add_unstarted(group.pending.num_answers, reason)
            group.pending.clear()
        else:
            self._slices.add(self._answers.end_pending(group, reason))
        group.complete_if_done()

    def _on_first_admitted(self, group: RequestGroup) -> None:
        """Start to process a group, unless its caller has given up."""
        if group.cancel_requested or group.future.done():  # the watchdog may have answered it
            gone = group.cancel_requested or group.future.cancelled()
            self.end_group(group, "cancelled" if gone else "deadline")
            return
        self._groups.add(group)
        self._inputs.add(group)

    def get_models(
        self, source: RewardSource, requested_s: float
    ) -> tuple[PromptedModel, RewardModel]:
        """Return both models; load those that are missing."""
        if self._stop.is_set():
            raise engine_closed_error(self._cause)
        return self._models.get(source, requested_s=requested_s)

    def _enqueue(self, group: RequestGroup) -> None:
        """Pass the requests of a group to the core, when further prompts have been read."""
        if self._core is None and self._models.model is not None:
            self._core = self._new_core(self._models.model)
        group.queue = group.queue or RequestQueue(
            (),
            group.num_rollouts,
            may_start=lambda: self.admission.may_start(group),
            on_start=lambda: self.admission.start_one(group),
        )
        group.queue.refill_if_empty(self._answers.requests_of(group))
        if self._core is not None:
            self._core.add(group.queue)
        group.complete_if_done()

    def _abort(self, rollouts: Sequence[Rollout]) -> None:
        if self._core is not None:
            self._core.abort(rollouts)

    def score(self, asked: Sequence[RoutedRequest]) -> None:
        """Compute offloaded rewards on worker threads, and others on this thread, now or later."""
        self._scores.add(self.reward_executor.submit(asked))

    def _recover(self, cause: BaseException) -> None:
        """Replace the core after a failed step, because its state is unknown."""
        failed, model = self._core, self._models.model
        hit = failed is not None and failed.has_unfinished
        self._num_failures = 0 if hit else self._num_failures + 1
        if self._num_failures <= 1:  # log a repeated failure once
            logger.error("A step failed; requests in progress end with an error", exc_info=cause)
        if self._num_failures >= MAX_FAILURES:
            logger.error("Stopping the engine after %s consecutive failures", MAX_FAILURES)
            self._cause = cause
            self._stop.set()
        if failed is None or model is None:
            return
        failed.close()
        self._scores.clear()
        self._num_steps += failed.num_steps
        self._core = self._new_core(model)
        self._answers.deliver(failed.take_events())
        for queue in failed.scheduler.queues:
            self._core.add(queue)
        for request in failed.scheduler.in_progress:
            rollout = request.rollout
            if rollout in self._answers:
                self._answers.deliver([(rollout, rollout.fail(model_failed(cause)))])

    def abandon(self) -> None:
        """Fail all calls from another thread, because the engine's thread does not end."""
        for group in (*self.admission.close(), *tuple(self._groups)):
            group.fail(engine_closed_error())
        self.score_jobs.fail_all(engine_closed_error())

    def fail_all(self, cause: BaseException | None) -> None:
        """Fail all requests after the loop has ended, and refuse others; may be called again."""
        self._stop.set()
        cause = self._cause = cause or self._cause
        groups = {*self.admission.close(), *self._groups}
        self._answers.fail_all(groups, cause)
        self.score_jobs.fail_all(engine_closed_error(cause))
        self._scores.clear()
        self.reward_executor.close_all(wait=not self._immediately)
        try:
            while True:  # refuse requests that have arrived meanwhile
                self._inbox.get_nowait()()
        except Empty:
            pass
        self.background.close()
        if self._core is not None:
            self._core.close()
            self._num_steps += self._core.num_steps
            self._core = None
        self._models.unload_all()
