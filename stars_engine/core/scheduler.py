"""The scheduler: which requests run, which wait, and which are preempted if memory runs out.

The scheduler owns the status of every request. Callers are served in turn. No request overtakes one
that does not fit a budget yet, so large requests are not starved. Preemption is eviction: the
youngest requests lose their cached prefixes, wait, and are recomputed later. Results do not change.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence

from stars_engine.algorithm.verification import NumDrafts
from stars_engine.core.batch_selection import BatchSelector
from stars_engine.core.memory_budget import MemoryBudget, Reserved
from stars_engine.core.request import (
    Request,
    RequestQueue,
    RequestStatus,
    num_new_prompt_tokens,
)

logger = logging.getLogger(__name__)

_SHARE_BESIDE = 4  # of the rows, in a batch beside paused ones
MAX_ACTIVE = 32  # requests in progress, unless the engine's settings say otherwise


class Scheduler:
    """Schedules requests from admission to completion.

    Args:
        max_rows: Maximum number of candidates drafted at once; None for no limit.
        max_active: Maximum number of requests in progress per reward model, and of requests ready
            to draft; `MAX_ACTIVE` if None.
        budget: The memory that requests in progress may reserve.

    Attributes:
        max_rows: As given.
        batches: Selects the requests of a step.
    """

    def __init__(
        self,
        *,
        max_rows: int | None = None,
        max_active: int | None = None,
        budget: MemoryBudget | None = None,
    ) -> None:
        self._max_active = MAX_ACTIVE if max_active is None else max_active
        self._budget = budget or MemoryBudget(None)
        self._queues: deque[RequestQueue] = deque()  # not started; the next in turn first
        self._preempted: list[Request] = []  # oldest first
        self._running: list[Request] = []  # longest waiting for its turn first
        self._waiting_for_reward: list[Request] = []
        self._by_status: dict[RequestStatus, list[Request]] = {  # of those in progress
            RequestStatus.WAITING: self._preempted,
            RequestStatus.RUNNING: self._running,
            RequestStatus.WAITING_FOR_DRAFT: [],
            RequestStatus.WAITING_FOR_REWARD: self._waiting_for_reward,
        }
        self._max_holding: int | None = None  # requests with a prefix, since memory ran out
        self._ages: dict[Request, int] = {}  # of those in progress
        self._num_started = 0
        self._reserved = Reserved()  # by those in progress
        self._num_by_reward: Counter[int] = Counter()  # of those in progress
        self._num_by_queue: Counter[RequestQueue] = Counter()
        self._num_in_turn: Counter[RequestQueue] = Counter()  # starts in each queue's turn
        self.max_rows = self._step_rows = max_rows
        self.batches = BatchSelector()

    # --- state ---

    @property
    def in_progress(self) -> list[Request]:
        """Requests that have started and not finished, oldest first."""
        return list(self._ages)

    @property
    def waiting_for_reward(self) -> list[Request]:
        """Requests whose drafts are being scored."""
        return list(self._waiting_for_reward)

    @property
    def queues(self) -> list[RequestQueue]:
        """Queues of requests that have not started, one per caller; the next in turn first."""
        return list(self._queues)

    @property
    def row_limit(self) -> int | None:
        """Maximum number of candidates in the next step; None for no limit."""
        limits = [n for n in (self._step_rows, self.batches.max_rows) if n is not None]
        return min(limits, default=None)

    @property
    def _num_callers(self) -> int:
        waiting = {queue for queue in self._queues if queue.peek() is not None}
        return len(waiting | self._num_by_queue.keys())

    @property
    def num_ready_rows(self) -> int:
        """Minimum candidates of running requests in one step; for any thread."""
        return sum(self.num_drafts(request).least for request in tuple(self._running))

    def has_work(self) -> bool:
        """Whether the next step can draft something."""
        may_resume = bool(self._preempted) and self._has_room()
        return bool(self._running) or may_resume or next(self._startable(), None) is not None

    def has_waiting(self) -> bool:
        """Whether any request has not started."""
        return any(queue.peek() is not None for queue in self._queues)

    def num_drafts(self, request: Request) -> NumDrafts:
        """Return how many candidates a request may draft in one step."""
        limit = self.row_limit
        if limit is None:
            return request.num_drafts
        least, most = request.num_drafts
        return NumDrafts(min(least, limit), min(most, limit))

    # --- transitions ---

    def add(self, queue: RequestQueue) -> None:
        """Add the waiting requests of one caller, unless they were added before."""
        if queue not in self._queues:
            self._queues.append(queue)

    def schedule(self, may_run: Callable[[Request], bool] | None = None) -> list[Request]:
        """Return the batch of the next step; all its requests draft the same number of tokens.

        The request that has waited longest sets that number; requests of other lengths run in later
        steps. Requests stay RUNNING until another method moves them.

        Args:
            may_run: Whether a request may run while batches are paused, with at most a quarter of
                the rows; None if none is paused.
        """
        self.batches.note_callers(self._num_callers)
        self._resume()
        self._start()
        running = [each for each in self._running if may_run is None or may_run(each)]
        self._step_rows = self.max_rows
        if self.max_rows is not None and may_run is not None:
            self._step_rows = max(1, self.max_rows // _SHARE_BESIDE)
        if not running:
            return []
        return self.batches.select(
            running, self._num_by_queue, lambda each: self.num_drafts(each).least, self._step_rows
        )

    def wait_for_draft(self, request: Request) -> None:
        """Move a request to WAITING_FOR_DRAFT: its drafts will be complete in a later step."""
        self._move(request, RequestStatus.WAITING_FOR_DRAFT)

    def resume_draft(self, request: Request) -> None:
        """Move a request from WAITING_FOR_DRAFT back to RUNNING: this step drafts for it."""
        self._move(request, RequestStatus.RUNNING)

    def wait_for_reward(self, request: Request) -> None:
        """Move a request to WAITING_FOR_REWARD: its drafts are being scored."""
        self._move(request, RequestStatus.WAITING_FOR_REWARD)

    def run_again(self, request: Request) -> None:
        """Let a request draft again after verification, once its prefix fits into memory."""
        request.verification = None
        request.update_num_drafts()
        # Its prefix may have been evicted while its drafts were being scored.
        may_run = request.holds_prefix or self._has_room()
        self._move(request, RequestStatus.RUNNING if may_run else RequestStatus.WAITING)

    def finish(self, request: Request) -> None:
        """Move a request to FINISHED, whatever ended it."""
        if request.verification is not None:
            request.verification.closed = True
            request.verification = None
        if request in self._ages:
            self._by_status[request.status].remove(request)
            del self._ages[request]
            self._uncount(request)
            if self._max_holding is not None:
                self._max_holding += 1  # memory may suffice for one more now
        request.release_prefixes()
        request.status = RequestStatus.FINISHED

    def _move(self, request: Request, status: RequestStatus) -> None:
        """Move a request in progress from one status to another."""
        self._by_status[request.status].remove(request)
        self._put(request, status)

    def _put(self, request: Request, status: RequestStatus) -> None:
        request.status = status
        self._by_status[status].append(request)
        if status is RequestStatus.WAITING:
            self._preempted.sort(key=self._ages.__getitem__)

    # --- memory ---

    def preempt(self, batch: Sequence[Request]) -> list[Request] | None:
        """Preempt requests after a batch has run out of memory.

        Requests of the batch without a cached prefix are preempted first, because no computation is
        lost. Next is the younger half of the requests whose drafts are being scored, then the
        younger half of all requests with a cached prefix.

        Returns:
            The rest of the batch; None if a single request is alone in memory. If that has several
            prompts, it remains once more, and keeps one of their prefixes at a time from then on.
        """
        holding = [request for request in self._ages if request.holds_prefix]
        fresh = [request for request in batch if not request.holds_prefix]
        being_scored = [item for item in holding if item.status is RequestStatus.WAITING_FOR_REWARD]
        if fresh and holding:
            victims = fresh
        elif being_scored:
            victims = being_scored[len(being_scored) // 2 :]
        else:
            oldest_first = holding or sorted(batch, key=self._ages.__getitem__)
            victims = oldest_first[(len(oldest_first) + 1) // 2 :]
        if not victims:
            return [request for request in batch if request.use_one_handle()] or None
        for request in victims:
            self._evict(request)
        left = [request for request in batch if request not in victims]
        self._max_holding = max(1, len({*left, *(r for r in holding if r.holds_prefix)}))
        logger.warning(
            "Out of memory; preempting %d requests, which are recomputed later", len(victims)
        )
        return left

    def _evict(self, request: Request) -> None:
        request.release_prefixes()
        if request.status is RequestStatus.RUNNING:
            self._move(request, RequestStatus.WAITING)

    def _has_room(self) -> bool:
        """Whether one more request may hold a prefix, as far as known."""
        if self._max_holding is None:
            return True
        scored = sum(request.holds_prefix for request in self._waiting_for_reward)
        return len(self._running) + scored < self._max_holding

    def _resume(self) -> None:
        if not any(request.holds_prefix for request in self._ages):
            self._max_holding = None  # the limit does not apply to an empty cache
        while self._preempted and self._has_room():
            self._move(self._preempted[0], RequestStatus.RUNNING)

    # --- starting ---

    def _start(self) -> None:
        """Start waiting requests; callers take turns, see `turn_size`."""
        num_rows = sum(self.num_drafts(request).least for request in self._running)
        num_new_tokens = 0
        last: Request | None = None

        def has_rows(queue: RequestQueue, request: Request) -> bool:
            if self.max_rows is None or not num_rows or not self._num_by_queue[queue]:
                return True  # a caller with nothing in progress does not wait for others' steps
            return num_rows + self.num_drafts(request).least <= self.max_rows

        for queue, request in self._startable(has_rows):
            rows = self.num_drafts(request).least
            num_new_tokens += num_new_prompt_tokens(request, last)
            if last is not None and num_new_tokens > self.batches.max_new_tokens:
                return
            num_rows += rows
            last = queue.take()
            self._note_turn(queue)
            self._num_started += 1
            self._ages[request] = self._num_started
            self._count(request, queue)
            self._put(request, RequestStatus.RUNNING)
            queue.on_start()

    def _note_turn(self, queue: RequestQueue) -> None:
        """Count a start; move a queue behind the others when its turn ends, or drop it if empty.

        Each queue counts its own starts. So a turn ends even if queues alternate, because the one
        in front cannot always start.
        """
        self._num_in_turn[queue] += 1
        if self._num_in_turn[queue] >= queue.turn_size or queue.peek() is None:
            self._drop_queue(queue)
            if queue.peek() is not None:
                self._queues.append(queue)

    def _drop_queue(self, queue: RequestQueue) -> None:
        self._queues.remove(queue)
        del self._num_in_turn[queue]

    def _count(self, request: Request, queue: RequestQueue) -> None:
        request.queue = queue
        self._reserved.add(request.rollout)
        self._num_by_reward[id(request.reward)] += 1
        self._num_by_queue[queue] += 1

    def _uncount(self, request: Request) -> None:
        assert request.queue is not None
        self._reserved.remove(request.rollout)
        self._num_by_reward[id(request.reward)] -= 1
        self._num_by_queue[request.queue] -= 1
        if not self._num_by_queue[request.queue]:
            del self._num_by_queue[request.queue]

    def _startable(
        self, has_rows: Callable[[RequestQueue, Request], bool] = lambda *_: True
    ) -> Iterator[tuple[RequestQueue, Request]]:
        """Yield queues whose next request may start; start each before asking for the next.

        `max_active` applies to each reward model separately, so requests that wait for a slow
        reward model do not block requests of other reward models. A quarter of it, if it is at
        least 4, is kept for callers with no request in progress.
        """
        if self._preempted:
            return  # preempted requests resume first
        is_full = False
        most_of_one = self._max_active - self._max_active // 4
        while len(self._running) < self._max_active:
            for queue in tuple(self._queues):
                request = queue.peek()
                if request is None:
                    self._drop_queue(queue)
                    continue
                num_own = self._num_by_queue[queue]
                num_of_reward = self._num_by_reward[id(request.reward)]
                limit = most_of_one if num_own else self._max_active
                has_capacity = num_of_reward < limit and len(self._running) < limit
                if not (has_capacity and queue.may_start() and has_rows(queue, request)):
                    continue
                if is_full or not self._fits(request):
                    is_full = True
                    continue
                yield queue, request
                break
            else:
                return

    def _fits(self, request: Request) -> bool:
        return not self._ages or (
            self._has_room() and self._budget.holds(request.rollout, self._reserved)
        )
