"""Drafts of an asynchronous model: which requests wait for them, and what has arrived."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from stars_engine.algorithm.candidate import Draft
from stars_engine.backends.base import AsyncLanguageModel, DraftRequest
from stars_engine.backends.draft_checks import checked_draft
from stars_engine.core.drafter import DraftOutcome, model_failed
from stars_engine.core.request import Request
from stars_engine.core.request_errors import as_request_error
from stars_engine.errors import GenerationError, is_for_program

logger = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Flight:
    """The candidates of one request's next segment.

    Attributes:
        request: The request.
        prefix: The token ids that the candidates continue.
        started_s: When it left, on the monotonic clock.
        load_before: Candidate-seconds of all requests until then; see `Load`.
        outcomes: Drafts and errors by index; None for those on their way.
        cancels: Cancel the candidates.
        arrived_s: When the last one arrived, on the monotonic clock.
        was_ahead: Whether they were drafted ahead, so that the times say nothing of the model.
        looked_ahead: Whether the segment after it was considered for drafting ahead.
    """

    request: Request
    prefix: tuple[int, ...]
    started_s: float
    load_before: float = 0.0
    outcomes: list[DraftOutcome | None] = field(default_factory=list)
    cancels: list[Callable[[], object]] = field(default_factory=list)
    arrived_s: float = 0.0
    looked_ahead: bool = False
    was_ahead: bool = False

    @property
    def arrived(self) -> list[DraftOutcome] | None:
        """All drafts and errors; None while one is on its way."""
        found = [outcome for outcome in self.outcomes if outcome is not None]
        return found if len(found) == len(self.outcomes) else None


class PendingDrafts:
    """Submits the candidates of each request by itself, so that a slow one delays no other request.

    All methods run on the engine's thread.

    Args:
        model: Answers later.
        post: Runs a callable on the engine's thread.
    """

    def __init__(
        self, model: AsyncLanguageModel, post: Callable[[Callable[[], None]], None]
    ) -> None:
        self._model, self._post = model, post
        self._flights: dict[Request, Flight] = {}
        self._ahead: dict[Request, Flight] = {}

    @property
    def num_rows(self) -> int:
        """Candidates on their way."""
        flights = [*self._flights.values(), *self._ahead.values()]
        return sum(len(flight.outcomes) for flight in flights)

    @property
    def in_flight(self) -> dict[Request, int]:
        """How many candidates each request waits for."""
        return {request: len(flight.outcomes) for request, flight in self._flights.items()}

    def submit(self, request: Request, count: int) -> Flight:
        """Ask for the next candidates of a request, or use those that were drafted ahead."""
        ahead = self._ahead.pop(request, None)
        if ahead is not None and not request.rollout.draws and ahead.prefix == request.prefix:
            ahead.was_ahead = True
            self._flights[request] = ahead
            return ahead
        self._drop(request, ahead)
        self._flights[request] = flight = self._send(request, count)
        return flight

    def submit_ahead(self, request: Request, later: Request, count: int) -> None:
        """Ask for the candidates of a request's next segment.

        Args:
            request: The request.
            later: The request as it will be if its first candidate is accepted.
            count: Number of candidates.
        """
        self._ahead[request] = self._send(later, count)

    def _send(self, request: Request, count: int) -> Flight:
        started_s = time.monotonic()
        try:
            asked = request.draft_requests(count)
        except BaseException as error:  # noqa: BLE001 - noise and strategies are third-party code
            failed = as_request_error(error, "the noise or the decoding strategy")
            outcomes: list[DraftOutcome | None] = [failed]
            return Flight(request, request.prefix, started_s, outcomes=outcomes)
        flight = Flight(request, request.prefix, started_s, outcomes=[None] * count)
        for index, draft_request in enumerate(asked):
            reply = partial(self._on_reply, flight, index, draft_request)
            try:
                flight.cancels.append(self._model.submit(draft_request, reply))
            except BaseException as error:  # models are third-party code
                if is_for_program(error):
                    raise
                flight.outcomes[index] = model_failed(error)
        return flight

    def take_arrived(self) -> list[tuple[Request, Flight, list[DraftOutcome]]]:
        """Return the requests whose candidates have all arrived, in the order of submission."""
        found = [(request, flight.arrived) for request, flight in self._flights.items()]
        taken = [(request, outcomes) for request, outcomes in found if outcomes is not None]
        return [(request, self._flights.pop(request), outcomes) for request, outcomes in taken]

    def cancel(self, request: Request) -> None:
        """Cancel the candidates of a request, if there are any."""
        flight = self._flights.pop(request, None)
        if flight is not None:
            _cancel([flight])
        self._drop(request, self._ahead.pop(request, None))

    def cancel_all(self) -> None:
        """Cancel all candidates."""
        flights = [*self._flights.values(), *self._ahead.values()]
        self._flights, self._ahead = {}, {}
        _cancel(flights)

    @staticmethod
    def _drop(request: Request, ahead: Flight | None) -> None:
        """Cancel candidates that were drafted ahead, and count their tokens.

        Those that have not arrived count in full, because what was drawn of them is unknown.
        """
        if ahead is None:
            return
        _cancel([ahead])
        count = sum(
            len(outcome.token_ids) + len(outcome.lookahead_ids)
            if isinstance(outcome, Draft)
            else ahead.request.rollout.next_len
            for outcome in ahead.outcomes
        )
        request.rollout.count(num_surplus_tokens=count, num_speculative_tokens=count)

    def drop_rejected(self, request: Request) -> None:
        """Cancel what was drafted ahead, unless the request's prefix is what it was drafted for."""
        ahead = self._ahead.get(request)
        if ahead is not None and (request.rollout.draws or ahead.prefix != request.prefix):
            self._drop(request, self._ahead.pop(request))

    def _on_reply(
        self, flight: Flight, index: int, asked: DraftRequest, outcome: Draft | GenerationError
    ) -> None:
        """Take an answer, on any thread."""
        found: DraftOutcome
        try:
            found = checked_draft(outcome, asked, self._model)
        except BaseException as error:  # models are third-party code
            if is_for_program(error):
                raise
            found = model_failed(error)
        self._post(partial(self._set, flight, index, found))

    @staticmethod
    def _set(flight: Flight, index: int, outcome: DraftOutcome) -> None:
        flight.outcomes[index] = outcome


def _cancel(flights: Sequence[Flight]) -> None:
    for flight in flights:
        for cancel in flight.cancels:
            try:
                cancel()
            except BaseException as error:  # models are third-party code
                if is_for_program(error):
                    raise
                logger.warning("Cancelling a draft failed", exc_info=True)
