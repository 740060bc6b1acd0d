"""Drafts of a model that answers later: which requests wait for them, and what has arrived."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from stars_engine.backends.base import AnswersLater, DraftRequest
from stars_engine.backends.draft_checks import checked_draft
from stars_engine.core.drafter import DraftOutcome, model_failed
from stars_engine.core.request import Request


@dataclass(eq=False, slots=True)
class Flight:
    """The candidates of one request's next segment.

    Attributes:
        request: The request.
        num_rows: Candidates of all requests that were on their way when it left, with its own.
        started_s: When it left, on the monotonic clock.
        outcomes: Drafts and errors by index; None for those on their way.
        cancels: Cancel the candidates.
    """

    request: Request
    num_rows: int
    started_s: float = field(default_factory=time.monotonic)
    outcomes: list[DraftOutcome | None] = field(default_factory=list)
    cancels: list[Callable[[], object]] = field(default_factory=list)

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

    def __init__(self, model: AnswersLater, post: Callable[[Callable[[], None]], None]) -> None:
        self._model, self._post = model, post
        self._flights: dict[Request, Flight] = {}

    @property
    def num_rows(self) -> int:
        """Candidates on their way."""
        return sum(len(flight.outcomes) for flight in self._flights.values())

    @property
    def in_flight(self) -> dict[Request, int]:
        """How many candidates each request waits for."""
        return {request: len(flight.outcomes) for request, flight in self._flights.items()}

    def submit(self, request: Request, count: int) -> None:
        """Ask for the next candidates of a request."""
        asked = request.draft_requests(count)
        flight = Flight(request, self.num_rows + count, outcomes=[None] * count)
        self._flights[request] = flight
        for index, draft_request in enumerate(asked):
            reply = partial(self._on_reply, flight, index, draft_request)
            try:
                flight.cancels.append(self._model.submit(draft_request, reply))
            except Exception as error:  # noqa: BLE001 - models are third-party code
                flight.outcomes[index] = model_failed(error)

    def take_arrived(self) -> list[tuple[Flight, list[DraftOutcome]]]:
        """Return the requests whose candidates have all arrived, in the order of submission."""
        found = [(flight, flight.arrived) for flight in self._flights.values()]
        taken = [(flight, outcomes) for flight, outcomes in found if outcomes is not None]
        for flight, _ in taken:
            del self._flights[flight.request]
        return taken

    def cancel(self, request: Request) -> None:
        """Cancel the candidates of a request, if there are any."""
        flight = self._flights.pop(request, None)
        if flight is not None:
            _cancel([flight])

    def cancel_all(self) -> None:
        """Cancel all candidates."""
        flights, self._flights = list(self._flights.values()), {}
        _cancel(flights)

    def _on_reply(
        self, flight: Flight, index: int, asked: DraftRequest, outcome: DraftOutcome
    ) -> None:
        """Take an answer, on any thread."""
        self._post(partial(self._set, flight, index, checked_draft(outcome, asked, self._model)))

    @staticmethod
    def _set(flight: Flight, index: int, outcome: DraftOutcome) -> None:
        flight.outcomes[index] = outcome


def _cancel(flights: Sequence[Flight]) -> None:
    for flight in flights:
        for cancel in flight.cancels:
            cancel()
