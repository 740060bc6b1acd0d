"""The answers in progress: from the rollouts that run for them to the events of their callers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

from stars_engine.algorithm.rollout import Rollout
from stars_engine.core.engine_core import Events
from stars_engine.core.request import Request
from stars_engine.runtime.answers import RequestOutput
from stars_engine.runtime.diagnostics import Diagnostics
from stars_engine.runtime.request_group import RequestGroup, engine_closed_error
from stars_engine.runtime.stats import Totals
from stars_engine.types import FinishReason, SegmentEvent

logger = logging.getLogger(__name__)


class ActiveAnswers:
    """Creates answers when they start, delivers their events, and ends them. One thread uses it.

    Args:
        abort: Drops rollouts that the core runs.
        drop: Takes rollouts that will not start out of the admission queue.

    Attributes:
        totals: Sums over answers that have ended.
    """

    def __init__(
        self,
        abort: Callable[[Sequence[Rollout]], None],
        drop: Callable[[RequestGroup, int], None],
    ) -> None:
        self._abort, self._drop = abort, drop
        self._outputs: dict[Rollout, RequestOutput] = {}
        self._ending: set[RequestGroup] = set()  # whose overdue answers are being ended
        self._diagnostics = Diagnostics()
        self.totals = Totals()

    def __contains__(self, rollout: Rollout) -> bool:
        return rollout in self._outputs

    def requests_of(self, group: RequestGroup) -> Iterator[Request]:
        """Create the requests of a group one by one, when they are about to start."""
        assert group.reward_model is not None
        while (found := group.pending.start()) is not None:
            output, part = found
            self._add(output, part)
            yield Request(part, group.reward_model, group.decoding, submitted_s=group.submitted_s)

    def deliver(self, events: Events) -> None:
        """Deliver events of rollouts to their callers."""
        for rollout, event in events:
            output = self._outputs.get(rollout)
            if output is None:  # its group has ended
                continue
            if rollout.finished:
                del self._outputs[rollout]
            seen = output.note(rollout, event)
            if seen is not None and output.rollout.finished:
                self._close(output, seen)
            elif seen is not None and (problem := output.group.note(output, seen)) is not None:
                self.fail(output, problem)  # its text cannot be read as a reply

    def end(self, output: RequestOutput, reason: FinishReason) -> None:
        """End an answer now; the accepted text is its result."""
        self._withdraw(output)
        self._close(output, output.end(reason))

    def fail(self, output: RequestOutput, error: Exception) -> None:
        """End an answer now with an error."""
        self._withdraw(output)
        self._close(output, output.fail(error))

    def fail_all(self, groups: Iterable[RequestGroup], cause: BaseException | None) -> None:
        """Fail all answers because the engine is closed, or because of an error of its thread."""
        for output in set(self._outputs.values()):
            self._fail_closed(output, cause)
        for group in groups:
            if group.wants_each_outcome and group.queue is not None:
                group.unread.give_up()
                while (found := group.pending.start()) is not None:
                    self._fail_closed(found[0], cause)
            else:
                group.fail(group.first_error or engine_closed_error(cause))

    def cancel_started(self, group: RequestGroup) -> None:
        """Cancel the answers in progress of a group that fails as a whole; no other starts."""
        group.clear_queue()
        for output in tuple(group.outputs):
            self.end(output, "cancelled")
        group.pending.clear()

    def end_pending(self, group: RequestGroup, reason: FinishReason) -> Iterator[None]:
        """End answers of a group that have not started, one by one."""
        while not group.is_taken_over and (found := group.pending.start()) is not None:
            output, part = found
            self._add(output, part)
            self.end(output, reason)
            yield

    def end_overdue(self, group: RequestGroup, now_s: float) -> Iterator[None]:
        """End answers of a group that have not started before their deadline, one by one.

        An iterator that another one of the same group has overtaken does nothing.
        """
        if group in self._ending:
            return
        self._ending.add(group)
        try:
            yield from self._end_overdue(group, now_s)
        finally:
            self._ending.discard(group)

    def _end_overdue(self, group: RequestGroup, now_s: float) -> Iterator[None]:
        created = None if group.queue is None else group.queue.created
        if created is not None and created.past_deadline:
            self._drop(group, 1)
            self.deliver([(created.rollout, created.rollout.finish("deadline"))])
        may_be_more = True
        while may_be_more:
            for output, part in group.pending.overdue(now_s):
                self._add(output, part)
                self._drop(group, 1)
                self.deliver([(part, part.finish("deadline"))])
                yield
                if group.is_taken_over:
                    return
            may_be_more = group.unread.end_next_overdue(now_s)

    def _fail_closed(self, output: RequestOutput, cause: BaseException | None) -> None:
        try:
            self.fail(output, engine_closed_error(cause))
        except Exception:
            logger.exception("Ending an answer failed")
            output.group.fail(engine_closed_error(cause))

    def _add(self, output: RequestOutput, part: Rollout) -> None:
        self._outputs[part] = output
        output.group.outputs[output] = None

    def _withdraw(self, output: RequestOutput) -> None:
        """Drop what runs for an answer, and what has not started."""
        self._abort(output.parts)
        num_unstarted = output.num_unstarted
        output.group.pending.num_rollouts -= num_unstarted
        self._drop(output.group, num_unstarted)

    def _close(self, output: RequestOutput, event: SegmentEvent) -> None:
        for part in output.parts:
            self._outputs.pop(part, None)
        group = output.group
        group.outputs.pop(output, None)
        self.totals.add(
            output.rollout, judged=group.judged, has_final_thresholds=group.has_final_thresholds
        )
        if group.has_final_thresholds:
            self._diagnostics.observe(output.rollout)
        group.note(output, event)
