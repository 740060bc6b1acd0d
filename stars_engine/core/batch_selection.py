"""Which running requests share the next step, and how much work it may have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from stars_engine.core.autotune import StepLimits
from stars_engine.core.request import MAX_TURN, Request, RequestQueue

MAX_NEW_TOKENS = 4096  # of different prompts that start in one step; a longer one starts alone
_HELD_STEPS = 32  # that stay short after the last step with several callers


class BatchSelector:
    """Selects the requests of a step; all of them draft the same number of tokens.

    Beside callers with few requests in progress, a large caller has one turn per step, and no more
    than fits into a short step. Small and large callers alternate in leading the batch, since the
    first request sets its segment length.

    Args:
        limits: What fits into a short step; None if steps need not be short.

    Attributes:
        max_rows: Maximum number of candidates of the next step; None for no limit.
        max_new_tokens: Tokens of different prompts that may start in the next step.
    """

    def __init__(self, limits: StepLimits | None = None) -> None:
        self.limits = limits
        self.max_rows: int | None = None
        self.max_new_tokens = MAX_NEW_TOKENS
        self._num_held = 0  # further steps that stay short
        self._small_first = False  # in the last batch

    def note_callers(self, count: int) -> None:
        """Set the number of callers that wait for this step or the next ones."""
        self._num_held = _HELD_STEPS if count > 1 else max(0, self._num_held - 1)
        self.max_new_tokens = MAX_NEW_TOKENS
        if self._num_held and self.limits is not None:
            self.max_new_tokens = self.limits.max_new_tokens(MAX_NEW_TOKENS)

    def select(
        self,
        running: Sequence[Request],
        num_by_queue: Counter[RequestQueue],
        num_rows: Callable[[Request], int],
        max_rows: int | None,
    ) -> list[Request]:
        """Return the batch of the next step.

        Args:
            running: The requests, the one that has waited longest first.
            num_by_queue: The requests in progress of each caller.
            num_rows: Returns how many candidates a request drafts at least, given `max_rows`.
            max_rows: Maximum number of candidates; None for no limit.
        """
        ready, small = self._ordered(running, num_by_queue)
        self.max_rows = self._short_step(ready)
        row_len = ready[0].rollout.align.row_len
        batch: list[Request] = []
        total = num_new_tokens = 0
        for request in ready:
            rows, limit = num_rows(request), max_rows
            if request not in small and self.max_rows is not None:
                limit = self.max_rows if limit is None else min(limit, self.max_rows)
            new_tokens = _num_new_tokens(request, batch)
            fits = limit is None or total + rows <= limit
            fits = fits and num_new_tokens + new_tokens <= self.max_new_tokens
            if not batch or (request.rollout.align.row_len == row_len and fits):
                batch.append(request)
                total += rows
                num_new_tokens += new_tokens
        return batch

    def _ordered(
        self, running: Sequence[Request], num_by_queue: Counter[RequestQueue]
    ) -> tuple[list[Request], set[Request]]:
        """Return requests in the order in which they enter the batch, and those of small callers.

        Without small callers, all requests run as they come.
        """
        small: list[Request] = []
        large: list[Request] = []
        turns: Counter[RequestQueue] = Counter()
        for request in running:
            assert request.queue is not None
            if num_by_queue[request.queue] <= MAX_TURN:
                small.append(request)
                continue
            turns[request.queue] += 1
            if turns[request.queue] <= MAX_TURN:
                large.append(request)
        if not small or not large:
            return list(running), set(small)
        self._small_first = not self._small_first
        return [*small, *large] if self._small_first else [*large, *small], set(small)

    def _short_step(self, ready: Sequence[Request]) -> int | None:
        """Return how many rows fit into a short step; None if it need not be short."""
        if not self._num_held or self.limits is None:
            return None
        rollouts = [request.rollout for request in ready[:MAX_TURN]]
        num_tokens = sum(len(each.prompt_ids) + len(each.token_ids) for each in rollouts)
        return self.limits.max_rows(ready[0].rollout.align.row_len, num_tokens)


def _num_new_tokens(request: Request, batch: Sequence[Request]) -> int:
    """Return how many tokens of prompts a request adds to a batch; equal prompts count once."""
    prompt_ids = request.rollout.prompt_ids
    is_same = bool(batch) and batch[-1].rollout.prompt_ids is prompt_ids
    return 0 if request.prompt_computed or is_same else len(prompt_ids)
