"""The engine core, without threads: each step drafts one segment for every request of a batch.

A step gets a batch from the scheduler, drafts candidates, submits them for scoring, and verifies
those whose rewards have arrived. Every draft request carries its whole prefix, so a rejected
candidate leaves no state to undo.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

from stars_engine.algorithm.candidate import Candidate
from stars_engine.algorithm.rollout import Rollout
from stars_engine.algorithm.verification import DraftVerification
from stars_engine.backends.base import LanguageModel, is_asynchronous
from stars_engine.core.async_drafts import AsyncDrafts
from stars_engine.core.autotune.autotuner import CandidateAutotuner
from stars_engine.core.batch_selection import Bounded, reserve_urgent
from stars_engine.core.drafter import Drafter, DraftOutcome
from stars_engine.core.local_drafts import LocalDrafts
from stars_engine.core.pending_drafts import PendingDrafts
from stars_engine.core.request import Request, RequestQueue, ScheduledRequest
from stars_engine.core.request_errors import as_request_error
from stars_engine.core.scheduler import Scheduler
from stars_engine.errors import RequestError
from stars_engine.out_of_memory import depends_on_weights, free_unused
from stars_engine.rewards.base import RewardModel
from stars_engine.rewards.reward_requests import (
    RewardRequest,
    RoutedRequest,
    score_now,
    single_models,
    split_composites,
)
from stars_engine.types import SegmentEvent

Scorer = Callable[[Sequence[RoutedRequest]], None]
Events = list[tuple[Rollout, SegmentEvent]]


class EngineCore:
    """Drafts, scores and verifies the requests that its scheduler runs.

    Args:
        model: Drafts for all requests.
        scheduler: Owns the requests and their statuses.
        scorer: Computes rewards, either at once or by a later step.
        autotuner: Chooses how many candidates to draft, from the speed of earlier steps.
        post: Runs a callable on the engine's thread. With it, drafts of an asynchronous model
            are used as they arrive; without it, each step waits for its drafts.
        draft_ahead: Whether drafts of an asynchronous model are made while rewards are
            computed; see `overlap`.
        part_s: Seconds after which a batch is paused, if the model can do that; see `LocalDrafts`.

    Attributes:
        num_steps: Number of steps that drafted something.
    """

    def __init__(
        self,
        model: LanguageModel,
        scheduler: Scheduler | None = None,
        scorer: Scorer = score_now,
        autotuner: CandidateAutotuner | None = None,
        *,
        post: Callable[[Callable[[], None]], None] | None = None,
        draft_ahead: Literal["auto", "always", "never"] = "never",
        part_s: float = math.inf,
    ) -> None:
        self.scheduler = scheduler or Scheduler()
        self._model, self._scorer = model, scorer
        self._autotuner = autotuner or CandidateAutotuner()
        self._drafter = Drafter(model, self._free_unused)
        self._drafts: AsyncDrafts | LocalDrafts
        if post is not None and is_asynchronous(model):
            self._drafts = AsyncDrafts(
                PendingDrafts(model, post),
                self.scheduler,
                self._autotuner,
                schedule=self._schedule,
                allocate=self._allocate,
                end_overdue=self.end_overdue,
                ahead=draft_ahead,
            )
        else:
            self._drafts = LocalDrafts(
                self._drafter,
                self.scheduler,
                self._autotuner,
                schedule=self._schedule,
                allocate=self._allocate,
                end=self._end,
                free_unused=self._free_unused,
                part_s=part_s,
                wake=None if post is None else partial(post, _do_nothing),
            )
        self._events: Events = []
        self.num_steps = 0

    def add(self, queue: RequestQueue) -> None:
        """Add the waiting requests of one caller."""
        self.scheduler.add(queue)

    @property
    def has_unfinished(self) -> bool:
        """Whether any request has not finished."""
        return bool(self.scheduler.in_progress) or self.scheduler.has_waiting()

    def step(self) -> Events:
        """Draft a segment for each request of a batch, and verify candidates that are scored."""
        drafted = self._drafts.step()
        self.num_steps += bool(drafted)
        started_s = time.perf_counter()
        self._score(drafted)
        self._drafts.note_scoring(time.perf_counter() - started_s)
        self._verify()
        return self.take_events()

    def _schedule(self, may_run: Callable[[Request], bool] | None = None) -> list[Request]:
        """Return the batch of the next step, without those that end before it."""
        scheduled = self.scheduler.schedule(may_run)
        self.end_overdue()
        self._invalidate_changed_weights(scheduled)
        return [item for item in scheduled if not item.rollout.finished]

    def has_work(self) -> bool:
        """Whether the next step can draft something without waiting for an answer."""
        return self._drafts.has_work

    def close(self) -> None:
        """Cancel the drafts that are not complete."""
        self._drafts.close()

    def take_events(self) -> Events:
        """Return and clear the events since the last call."""
        events, self._events = self._events, []
        return events

    def end_overdue(self) -> None:
        """Finish requests in progress that are past their deadline or have spent their budget."""
        for request in self.scheduler.in_progress:
            rollout = request.rollout
            if request.past_deadline:
                self._end(request, rollout.finish("deadline"))
            elif request.verification is None and rollout.over_budget:
                self._end(request, rollout.finish("budget"))

    @property
    def next_expiry_s(self) -> float | None:
        """When the next deadline in progress passes (monotonic clock); None without one."""
        times = [request.expires_at_s for request in self.scheduler.in_progress]
        return min((seconds for seconds in times if seconds is not None), default=None)

    def abort(self, rollouts: Sequence[Rollout]) -> None:
        """Drop requests that their caller has ended."""
        gone = set(rollouts)
        for request in self.scheduler.in_progress:
            if request.rollout in gone:
                self._finish(request)

    # --- drafting ---

    def _allocate(
        self,
        requests: Sequence[Request],
        in_flight: Mapping[Request, int] | None = None,
        num_scored: int = 0,
    ) -> list[ScheduledRequest]:
        """Choose how many candidates each request of a batch drafts, beside those in flight.

        Of those in flight, the ones that are scored already do not count towards limits on rows.
        """
        limits = [n for n in (self.scheduler.row_limit, self._drafter.max_rows) if n is not None]
        max_rows = min(limits) + num_scored if limits else None
        bounds = [(request, self.scheduler.num_drafts(request)) for request in requests]

        def allocate(some: Sequence[Bounded]) -> list[int]:
            return self._autotuner.allocate(
                [request for request, _ in some],
                [each for _, each in some],
                self._model,
                max_rows=max_rows,
                in_flight=in_flight,
            )

        bounds = reserve_urgent(bounds, self.scheduler.batches.urgent, allocate, max_rows)
        counts = allocate(bounds)
        return [
            ScheduledRequest(request, n) for (request, _), n in zip(bounds, counts, strict=True)
        ]

    def _score(self, drafted: Sequence[tuple[Request, Sequence[DraftOutcome]]]) -> None:
        """Start the verification of drafts, and request their rewards."""
        opened = [self._open(request, drafts) for request, drafts in drafted]
        self._scorer(split_composites(item for asked in opened for item in asked))

    def _open(self, request: Request, outcomes: Sequence[DraftOutcome]) -> list[RoutedRequest]:
        """Start the verification of a request's drafts; return the requests for rewards.

        Drafts before the first failed one are verified. A failure counts only when it is the next
        draw, so the outcome does not depend on how many candidates are drafted at once.
        """
        rollout = request.rollout
        candidates, problem = self._read(rollout, outcomes)
        if not candidates:
            assert problem is not None
            self._end(request, rollout.fail(problem))
            return []
        try:
            verification = request.decoding.open(rollout, candidates)
            verification.next_failed = problem is not None
            asked = [
                RoutedRequest(
                    request.reward,
                    RewardRequest(item, partial(verification.set_outcome, index), verification),
                )
                for index, item in enumerate(verification.inputs)
            ]
        except BaseException as error:  # noqa: BLE001 - strategies are third-party code
            self._end(request, rollout.fail(as_request_error(error, "the decoding strategy")))
            return []
        request.verification = verification
        self.scheduler.wait_for_reward(request)
        return asked

    def _read(
        self, rollout: Rollout, outcomes: Sequence[DraftOutcome]
    ) -> tuple[list[Candidate], RequestError | None]:
        """Parse drafts up to the first that failed or cannot be parsed; return why, if any did."""
        candidates: list[Candidate] = []
        for outcome in outcomes:
            if isinstance(outcome, RequestError):
                return candidates, outcome
            try:
                candidates.append(rollout.read(outcome, self._model))
            except BaseException as error:  # noqa: BLE001 - tokenizers are third-party code
                return candidates, as_request_error(error, "parsing a draft")
        return candidates, None

    # --- verifying ---

    def _verify(self) -> None:
        """Verify requests with the rewards that have arrived."""
        for request in self.scheduler.waiting_for_reward:
            verification = request.verification
            assert verification is not None
            is_open, event = self._verify_one(request, verification)
            if is_open:
                continue
            verification.closed = True
            self._drafts.note_verdict(request)
            if request.rollout.finished:
                assert event is not None
                self._end(request, event)
            else:
                self.scheduler.run_again(request)
                if event is not None:
                    self._events.append((request.rollout, event))

    def _verify_one(
        self, request: Request, verification: DraftVerification
    ) -> tuple[bool, SegmentEvent | None]:
        """Return whether a verification goes on, and what it has led to."""
        rollout = request.rollout
        try:
            event = _checked_event(request.decoding.verify(verification), rollout)
            is_open = event is None and not verification.all_used
        except BaseException as error:  # noqa: BLE001 - strategies and schedules may be foreign
            problem = as_request_error(error, "the decoding strategy or the schedule")
            is_open, event = False, rollout.fail(problem)
        if event is not None:
            self._autotuner.note_event(rollout, request.reward, event)
        return is_open, event

    # --- ending ---

    def _end(self, request: Request, event: SegmentEvent) -> None:
        self._events.append((request.rollout, event))
        self._finish(request)

    def _finish(self, request: Request) -> None:
        self._drafts.cancel(request)
        self.scheduler.finish(request)

    # --- memory ---

    def _free_unused(self) -> None:
        free_unused(self._model, *_reward_parts(self.scheduler.in_progress))

    def _invalidate_changed_weights(self, requests: Sequence[Request]) -> None:
        """Invalidate caches of reward models whose weights changed, when a request starts."""
        new = [each for each in requests if not (each.prompt_computed or each.rollout.finished)]
        for part in _reward_parts(new):
            error = _invalidate(part)
            if error is not None:  # it may pass
                error = _invalidate(part)
            if error is not None:
                for request in new:
                    if any(each is part for each in single_models(request.reward)):
                        problem = as_request_error(error, "the reward model")
                        self._end(request, request.rollout.fail(problem))


def _invalidate(reward: RewardModel) -> BaseException | None:
    """Let a reward model forget what it computed with other weights; return why it failed."""
    try:
        if depends_on_weights(reward):
            reward.invalidate_if_changed()
    except BaseException as error:  # noqa: BLE001 - reward models are third-party code
        return error
    return None


def _do_nothing() -> None:
    """A message that only wakes the engine's thread."""


def _checked_event(event: object, rollout: Rollout) -> SegmentEvent | None:
    """Return what the `verify` of a strategy has returned.

    Raises:
        TypeError: It is not an event, or the answer has ended without one.
    """
    if isinstance(event, SegmentEvent) or (event is None and not rollout.finished):
        return event
    raise TypeError(f"verify returned {event!r:.60} instead of a SegmentEvent")


def _reward_parts(requests: Sequence[Request]) -> list[RewardModel]:
    rewards = {id(request.reward): request.reward for request in requests}
    return [part for reward in rewards.values() for part in single_models(reward)]
