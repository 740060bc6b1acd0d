"""The steps of the engine core for a model that answers at once: draft batches, long ones in parts.

A batch that takes longer than one part of a step is paused, and continued in later steps. Meanwhile
requests with much shorter drafts may be drafted, so that a long segment delays nobody by more than
a part. What a paused batch has drafted stays in the frames of its generator. Noise is counted, so a
pause changes no text.

When memory runs out, these are tried in order:

1. The cache evicts what no request uses (`kv_cache/pool.py`).
2. The drafter drafts half as many candidates at once, and half of these (`drafter.py`).
3. Paused batches are given up, and drafted again.
4. The scheduler preempts requests, which are computed again later.
5. A request that is alone keeps one prefix at a time.
6. A request that does not fit even then ends with an error.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import closing
from dataclasses import dataclass, field

from stars_engine.backends.base import DraftRequest, Pause
from stars_engine.core.autotune.autotuner import CandidateAutotuner
from stars_engine.core.drafter import Drafter, DraftOutcome
from stars_engine.core.request import Request, RequestStatus, ScheduledRequest
from stars_engine.core.request_errors import as_request_error, out_of_memory_error
from stars_engine.core.scheduler import Scheduler
from stars_engine.out_of_memory import is_out_of_memory, strip_traceback
from stars_engine.types import SegmentEvent

PART_S = 0.05  # after which a batch is paused
_MAX_PAUSED = 2  # batches, apart from those that wait for another thread
_SHORTER = 2  # times shorter than what is left of paused batches is what may go before them
_WAIT_S = 0.01  # for another thread, before a batch is paused
_NUM_WHOLE = 32  # batches that are not paused after memory ran out

MayRun = Callable[[Request], bool]


@dataclass(eq=False, slots=True)
class PausableBatch:
    """The requests of one batch, and what was drafted for them.

    Attributes:
        left: Those to draft for.
        drafted: The others, each with its drafts and errors.
        seconds: Time spent on it.
        parts: Drafts them.
        num_pauses: Pauses at which it could have been paused: about one for each token.
        pause: The last one.
        has_waited: Whether it was paused for another thread.
    """

    left: list[ScheduledRequest]
    drafted: list[tuple[Request, list[DraftOutcome]]] = field(default_factory=list)
    seconds: float = 0.0
    parts: Generator[Pause, None, None] | None = None
    num_pauses: int = 0
    pause: Pause | None = None
    has_waited: bool = False

    @property
    def requests(self) -> list[Request]:
        """Its requests that have not ended."""
        all_requests = [request for request, _ in (*self.drafted, *self.left)]
        return [each for each in all_requests if each.status is not RequestStatus.FINISHED]

    @property
    def is_waiting(self) -> bool:
        """Whether its next token needs what another thread still computes."""
        waits_for = None if self.pause is None else self.pause.waits_for
        return waits_for is not None and not waits_for.done()

    @property
    def num_left(self) -> int:
        """Tokens that its longest row still drafts."""
        return 0 if self.pause is None else self.pause.num_left

    @property
    def remaining_s(self) -> float:
        """Seconds that it will still take, judging by those so far."""
        return self.seconds / max(1, self.num_pauses) * self.num_left


class LocalDrafts:
    """Drafts for a scheduler's requests, one part of a batch at a time.

    Args:
        drafter: Drafts candidates.
        scheduler: Owns the requests.
        autotuner: Predicts how long drafts take.
        schedule: Returns the requests of the next batch; takes which may run, or None for all.
        allocate: Chooses how many candidates each request of a batch drafts.
        end: Ends a request with an event.
        free_unused: Frees memory that no request uses.
        part_s: Seconds after which a batch is paused; inf for never.
        wake: Called on any thread when a paused batch can be continued; None if the steps are to
            wait for it.
    """

    def __init__(
        self,
        drafter: Drafter,
        scheduler: Scheduler,
        autotuner: CandidateAutotuner,
        *,
        schedule: Callable[[MayRun | None], Sequence[Request]],
        allocate: Callable[[Sequence[Request]], Sequence[ScheduledRequest]],
        end: Callable[[Request, SegmentEvent], None],
        free_unused: Callable[[], None],
        part_s: float,
        wake: Callable[[], None] | None = None,
    ) -> None:
        self._drafter, self._scheduler, self._autotuner = drafter, scheduler, autotuner
        self._schedule, self._allocate, self._end = schedule, allocate, end
        self._free_unused, self._part_s, self._wake = free_unused, part_s, wake
        scheduler.batches.limits = autotuner.limits
        self._paused: deque[PausableBatch] = deque()  # the next to continue first
        self._latest: PausableBatch | None = None  # drafted, and not scored
        self._was_new = False  # whether the latest part began a batch while others are paused
        self._num_whole = 0  # further batches that are not paused

    @property
    def has_work(self) -> bool:
        """Whether a batch can be begun or continued."""
        return self._continued is not None or self._scheduler.has_work()

    def step(self) -> list[tuple[Request, list[DraftOutcome]]]:
        """Draft one part of a batch; return what the batch has drafted if that was the last one."""
        batch = self._next()
        if batch is None or not self._advance(batch):
            return []
        batch.drafted = [
            item for item in batch.drafted if item[0].status is not RequestStatus.FINISHED
        ]
        self._latest = batch
        return batch.drafted

    def note_scoring(self, seconds: float) -> None:
        """Record the duration of a step, which drafted a batch and scored it."""
        batch, self._latest = self._latest, None
        if batch is None or not batch.drafted:
            return
        requests = [request for request, _ in batch.drafted]
        num_rows = sum(len(outcomes) for _, outcomes in batch.drafted)
        self._autotuner.note_step(requests, num_rows, batch.seconds + seconds)
        for request in requests:
            request.prompt_computed = True

    def note_verdict(self, request: Request) -> None:
        """See `AsyncDrafts`; nothing to record."""

    def cancel(self, request: Request) -> None:
        """See `AsyncDrafts`; a batch leaves out requests that have ended."""

    def close(self) -> None:
        """Give up all paused batches."""
        while self._paused:
            _close(self._paused.popleft())

    # --- parts ---

    def _next(self) -> PausableBatch | None:
        """Return a new batch and a paused one in turn."""
        if not self._was_new or not self._paused:
            batch = self._new()
            self._was_new = batch is not None and bool(self._paused)
            if batch is not None:
                return batch
        self._was_new = False
        while (batch := self._continued) is not None:
            self._paused.remove(batch)
            if batch.requests:
                for request in batch.requests:
                    self._scheduler.resume_draft(request)
                return batch
            _close(batch)
        return None

    @property
    def _continued(self) -> PausableBatch | None:
        """The next paused batch to continue, or to close; None if all wait for other threads."""
        ready = (each for each in self._paused if not (each.requests and each.is_waiting))
        found = next(ready, None)
        if found is None and self._wake is None and self._paused:
            return self._paused[0]  # the step waits
        return found

    def _new(self) -> PausableBatch | None:
        if sum(not batch.is_waiting for batch in self._paused) >= _MAX_PAUSED:
            return None
        requests = self._schedule(self._is_short if self._paused else None)
        batch = PausableBatch(list(self._allocate(requests)))
        asked_by = {item.request: self._draft_requests(*item) for item in batch.left}
        batch.left = [item for item in batch.left if asked_by[item.request]]
        batch.parts = self._parts(batch, asked_by)
        return batch if batch.left else None

    def _is_short(self, request: Request) -> bool:
        """Whether a request's draft is much shorter than what is left of the paused batches.

        It is if it has fewer tokens, or takes less time because it has fewer rows. Requests with
        drafts as long wait, and share the next batch.
        """
        num_tokens = request.rollout.next_len + request.rollout.next_lookahead
        predicted_s = self._autotuner.draft_s(request, num_tokens)
        return all(
            batch.is_waiting
            or _SHORTER * num_tokens <= batch.num_left
            or _SHORTER * predicted_s <= batch.remaining_s
            for batch in self._paused
        )

    def _advance(self, batch: PausableBatch) -> bool:
        """Draft one part; return whether it was the last one."""
        assert batch.parts is not None
        started_s = time.perf_counter()
        until_s = started_s + self._part_s
        if self._num_whole > 0:
            until_s = float("inf")
        for pause in batch.parts:
            batch.pause = pause
            batch.num_pauses += 1
            now_s = time.perf_counter()
            is_over = now_s >= until_s
            waits = not is_over and self._waits_long(batch)
            batch.has_waited = batch.has_waited or waits
            if is_over or (waits and until_s < float("inf")):
                batch.seconds += now_s - started_s
                self._pause(batch)
                return False
        batch.seconds += time.perf_counter() - started_s
        self._num_whole = max(0, self._num_whole - 1)
        for request in batch.requests:
            request.waited_for_masks = batch.has_waited
        return True

    @staticmethod
    def _waits_long(batch: PausableBatch) -> bool:
        """Wait shortly for another thread; return whether it needs more time."""
        if batch.is_waiting:
            assert batch.pause is not None
            assert batch.pause.waits_for is not None
            wait([batch.pause.waits_for], timeout=_WAIT_S)
        return batch.is_waiting

    def _pause(self, batch: PausableBatch) -> None:
        for request in batch.requests:
            self._scheduler.wait_for_draft(request)
        self._paused.append(batch)
        wake = self._wake
        if wake is not None and batch.pause is not None and batch.pause.waits_for is not None:
            batch.pause.waits_for.add_done_callback(lambda _: wake())

    # --- drafting ---

    def _draft_requests(self, request: Request, count: int) -> list[DraftRequest]:
        """Return a request's next draws; end it if its noise or its strategy fails."""
        try:
            return request.draft_requests(count)
        except BaseException as error:  # noqa: BLE001 - third-party code
            problem = as_request_error(error, "the noise or the decoding strategy")
            self._end(request, request.rollout.fail(problem))
            return []

    def _parts(
        self, batch: PausableBatch, asked_by: Mapping[Request, Sequence[DraftRequest]]
    ) -> Generator[Pause, None, None]:
        """Draft the candidates of a batch; preempt requests if memory runs out."""
        while batch.left:
            asked = [
                draw
                for request, _ in batch.left
                for draw in request.with_handles(asked_by[request])
            ]
            outcomes: list[DraftOutcome] = []
            problem: Exception | None = None
            try:
                with closing(self._drafter.draft(asked)) as drafting:
                    for outcome in drafting:
                        if isinstance(outcome, Pause):
                            yield outcome
                        else:  # outcomes before an error are used
                            outcomes.append(outcome)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                problem = strip_traceback(error)
            while batch.left and len(outcomes) >= batch.left[0].num_candidates:
                request, count = batch.left.pop(0)
                batch.drafted.append((request, outcomes[:count]))
                del outcomes[:count]
            if problem is not None:
                batch.left = self._with_less(batch.left, problem)

    # --- memory ---

    def _with_less(
        self, left: Sequence[ScheduledRequest], problem: Exception
    ) -> list[ScheduledRequest]:
        """Give up paused batches or preempt requests; return those to draft for again."""
        left = [item for item in left if item.request.status is not RequestStatus.FINISHED]
        if self._paused:
            self._num_whole = _NUM_WHOLE
            for batch in self._paused:
                for request in batch.requests:
                    self._scheduler.resume_draft(request)
            self.close()
            self._free_unused()
            return left
        kept = self._scheduler.preempt([request for request, _ in left]) if left else []
        if kept is None:
            for request, _ in left:
                error = out_of_memory_error(request.rollout, problem)
                self._end(request, request.rollout.fail(error))
        self._free_unused()
        return [item for item in left if kept and item.request in kept]


def _close(batch: PausableBatch) -> None:
    if batch.parts is not None:
        batch.parts.close()
