"""Which running requests share the next step, and how much work it may have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from stars_engine.algorithm.verification import NumDrafts
from stars_engine.core.autotune.step_limits import StepLimits
from stars_engine.core.request import MAX_TURN, Request, RequestQueue, num_new_prompt_tokens

MAX_NEW_TOKENS = 4096  # of different prompts that start in one step; a longer one starts alone
_FACTOR_ALONE = 4  # for prompts of a caller that is alone, since another one may come
_HELD_STEPS = 32  # that stay short after the last step with several callers


Bounded = tuple[Request, NumDrafts]  # and how many candidates it may draft


class BatchSelector:
    """Selects the requests of a step; all of them draft the same number of tokens.

    Requests whose grammar may have slow masks have batches of their own, so that no other waits.

    Beside callers with few requests in progress, a large caller has one turn per step, and no more
    than fits into a short step. Small and large callers alternate in leading the batch, since the
    first request sets its segment length.

    Args:
        limits: What fits into a short step; None if steps need not be short.

    Attributes:
        max_rows: Maximum number of candidates of the next step; None for no limit.
        urgent: Requests of small callers in the next step, if that step is short and also has
            requests of large callers.
        max_new_tokens: Tokens of different prompts that may start in the next step.
    """

    def __init__(self, limits: StepLimits | None = None) -> None:
        self.limits = limits
        self.max_rows: int | None = None
        self.urgent: frozenset[Request] = frozenset()
        self.max_new_tokens = MAX_NEW_TOKENS
        self._num_held = 0  # further steps that stay short
        self._small_first = False  # in the last batch

    def note_callers(self, count: int) -> None:
        """Set the number of callers that wait for this step or the next ones."""
        self._num_held = _HELD_STEPS if count > 1 else max(0, self._num_held - 1)
        self.max_new_tokens = MAX_NEW_TOKENS
        if self.limits is not None:
            most = self.limits.max_new_tokens() * (1 if self._num_held else _FACTOR_ALONE)
            self.max_new_tokens = min(MAX_NEW_TOKENS, most)

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
        is_quick = ready[0].has_quick_masks
        batch: list[Request] = []
        total = num_new_tokens = 0
        for request in ready:
            rows, limit = num_rows(request), max_rows
            if request not in small and self.max_rows is not None:
                limit = self.max_rows if limit is None else min(limit, self.max_rows)
            new_tokens = num_new_prompt_tokens(request, batch[-1] if batch else None)
            fits = limit is None or total + rows <= limit
            fits = fits and num_new_tokens + new_tokens <= self.max_new_tokens
            fits = fits and request.has_quick_masks == is_quick
            if not batch or (request.rollout.align.row_len == row_len and fits):
                batch.append(request)
                total += rows
                num_new_tokens += new_tokens
        is_mixed = self.max_rows is not None and not small.issuperset(batch)
        self.urgent = small.intersection(batch) if is_mixed else frozenset()
        return batch

    def _ordered(
        self, running: Sequence[Request], num_by_queue: Counter[RequestQueue]
    ) -> tuple[list[Request], frozenset[Request]]:
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
            return list(running), frozenset(small)
        self._small_first = not self._small_first
        return [*small, *large] if self._small_first else [*large, *small], frozenset(small)

    def _short_step(self, ready: Sequence[Request]) -> int | None:
        """Return how many rows fit into a short step; None if it need not be short."""
        if not self._num_held or self.limits is None:
            return None
        rollouts = [request.rollout for request in ready[:MAX_TURN]]
        num_tokens = sum(len(each.prompt_ids) + len(each.token_ids) for each in rollouts)
        return self.limits.max_rows(ready[0].rollout.align.row_len, num_tokens)


def reserve_urgent(
    batch: Sequence[Bounded],
    urgent: frozenset[Request],
    allocate: Callable[[Sequence[Bounded]], Sequence[int]],
    max_rows: int | None,
) -> list[Bounded]:
    """Give urgent requests the candidates that they would draft alone, and others the rest.

    Args:
        batch: The requests of a step, and how many candidates each may draft.
        urgent: Those of small callers; none if the step need not be short.
        allocate: Chooses how many candidates each request of a batch drafts.
        max_rows: Maximum number of candidates; None for no limit.

    Returns:
        The batch, without requests for which no rows are left. One of them always stays, so that
        large callers make progress.
    """
    first = [item for item in batch if item[0] in urgent]
    others = [item for item in batch if item[0] not in urgent]
    if not first or max_rows is None:
        return list(batch)
    counts = allocate(first)
    kept: list[Bounded] = [
        (request, NumDrafts(count, count))
        for (request, _), count in zip(first, counts, strict=True)
    ]
    total = sum(counts)
    for index, (request, bounds) in enumerate(others):
        if index == 0 or total + bounds.least <= max_rows:
            kept.append((request, bounds))
            total += bounds.least
    return kept
