"""The steps of the engine core for an asynchronous model: submit, collect, draft ahead."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from stars_engine.core.autotune.autotuner import CandidateAutotuner
from stars_engine.core.autotune.load_costs import Load
from stars_engine.core.drafter import DraftOutcome
from stars_engine.core.overlap import MeanDuration, pays, request_after_first
from stars_engine.core.pending_drafts import Flight, PendingDrafts
from stars_engine.core.request import Request, ScheduledRequest
from stars_engine.core.scheduler import Scheduler

Allocate = Callable[[Sequence[Request], Mapping[Request, int], int], Sequence[ScheduledRequest]]


class AsyncDrafts:
    """Drafts for a scheduler's requests with an asynchronous model.

    Args:
        pending: Submits candidates.
        scheduler: Owns the requests.
        autotuner: Learns from the candidates under way and the time to a verdict.
        schedule: Returns the next requests to draft for.
        allocate: Chooses how many candidates each request drafts, given those of other requests
            under way, and how many of these are drafted already.
        end_overdue: Ends requests that are past their deadline or budget.
        ahead: Whether next segments are drafted while rewards are computed.
    """

    def __init__(
        self,
        pending: PendingDrafts,
        scheduler: Scheduler,
        autotuner: CandidateAutotuner,
        *,
        schedule: Callable[[], Sequence[Request]],
        allocate: Allocate,
        end_overdue: Callable[[], None],
        ahead: Literal["auto", "always", "never"],
    ) -> None:
        self._pending, self._scheduler, self._autotuner = pending, scheduler, autotuner
        self._schedule, self._allocate, self._end_overdue = schedule, allocate, end_overdue
        self._ahead = ahead
        self._being_scored: dict[Request, Flight] = {}  # drafts that are being scored
        self._draft_times, self._reward_times = MeanDuration(), MeanDuration()
        self._load = Load()

    @property
    def has_work(self) -> bool:
        """Whether candidates can be asked for now."""
        return self._scheduler.has_work() and not self._is_full

    def step(self) -> list[tuple[Request, list[DraftOutcome]]]:
        """Ask for candidates, and return the requests whose candidates have all arrived."""
        self._end_overdue()
        self._submit()
        return self._take_arrived()

    def note_scoring(self, seconds: float) -> None:
        """Draft ahead, now that the rewards of what has arrived are being computed."""
        self._draft_ahead()

    @property
    def _is_full(self) -> bool:
        """Whether as many candidates are on their way as the scheduler allows."""
        limit = self._scheduler.max_rows
        return limit is not None and self._pending.num_rows >= limit

    def _submit(self) -> None:
        """Ask for candidates of all requests that run, within the limit on rows."""
        while not self._is_full:
            batch = self._schedule()
            if not batch:
                return
            for request, count in self._allocate(batch, self._under_way, self._num_scored):
                self._scheduler.wait_for_draft(request)
                flight = self._pending.submit(request, count)
                if not flight.was_ahead:
                    flight.load_before = self._load.total(flight.started_s)
            self._note_load()

    def _take_arrived(self) -> list[tuple[Request, list[DraftOutcome]]]:
        arrived = self._pending.take_arrived()
        for request, flight, _ in arrived:
            self._being_scored[request] = flight
            flight.arrived_s = time.monotonic()
            if not flight.was_ahead:
                self._draft_times.add(flight.arrived_s - flight.started_s)
        return [(request, outcomes) for request, _, outcomes in arrived]

    def _draft_ahead(self) -> None:
        """Draft the next segments of requests whose rewards are being computed."""
        if self._ahead == "never":
            return
        for request in self._scheduler.waiting_for_reward:
            verification, flight = request.verification, self._being_scored.get(request)
            if verification is None or flight is None or flight.looked_ahead:
                continue
            flight.looked_ahead = True
            later = request_after_first(request, verification)
            if later is None or verification.all_arrived or self._is_full:
                continue
            others = {each: n for each, n in self._under_way.items() if each is not request}
            num_scored = self._num_scored - len(flight.outcomes)
            [(_, count)] = self._allocate([later], others, num_scored)
            if self._ahead == "always" or self._saves_time(request, count):
                self._pending.submit_ahead(request, later, count)
                self._note_load()

    def note_verdict(self, request: Request) -> None:
        """Record the time from the request for drafts to the verdict, unless it read a prompt."""
        flight = self._being_scored.pop(request, None)
        if flight is not None and request.prompt_computed:
            now_s = time.monotonic()
            self._reward_times.add(now_s - flight.arrived_s)
            seconds = now_s - flight.started_s
            if not flight.was_ahead and seconds > 0:
                load = (self._load.total(now_s) - flight.load_before) / seconds
                self._autotuner.note_load(request, load, len(flight.outcomes), seconds)
        request.prompt_computed = True
        self._pending.drop_rejected(request)
        self._note_load()

    def cancel(self, request: Request) -> None:
        """Cancel all candidates of a request."""
        self._pending.cancel(request)
        self._being_scored.pop(request, None)
        self._note_load()

    def close(self) -> None:
        """Cancel all candidates."""
        self._pending.cancel_all()

    @property
    def _under_way(self) -> dict[Request, int]:
        """Candidates of each request that are drafted or scored."""
        scored = {request: len(each.outcomes) for request, each in self._being_scored.items()}
        return {**scored, **self._pending.in_flight}

    @property
    def _num_scored(self) -> int:
        return sum(len(flight.outcomes) for flight in self._being_scored.values())

    def _note_load(self) -> None:
        self._load.set(self._pending.num_rows + self._num_scored, time.monotonic())

    def _saves_time(self, request: Request, count: int) -> bool:
        streams = len(self._scheduler.in_progress)
        extra_s = self._autotuner.extra_s(request, streams) * count
        acceptance = self._autotuner.acceptance(request)
        times = self._draft_times.seconds, self._reward_times.seconds
        return pays(acceptance, *times, extra_s, streams)
