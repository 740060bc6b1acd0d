"""The last events of a call at its deadline, read while the engine's thread hangs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from stars_engine.algorithm.rollout import Rollout
from stars_engine.runtime.answers import RequestOutput
from stars_engine.runtime.output_processor import OutputProcessor
from stars_engine.runtime.request_group import RequestGroup
from stars_engine.runtime.unread_prompts import empty_prompts
from stars_engine.types import SegmentEvent


def events_at_deadline(group: RequestGroup) -> Iterator[tuple[int, SegmentEvent]]:
    """Yield the position and the last event of each answer without an outcome.

    Answers in progress end with what was accepted; others are empty.
    """
    known = set(group.outcomes)
    for output in tuple(group.outputs):
        if output.index not in known:
            known.add(output.index)
            rollout = _copy(output.rollout)
            processor = OutputProcessor(rollout, output.replies, output.group.submitted_s)
            yield output.index, _last_event(rollout, processor)
    for output in _unstarted(group):
        if output.index not in known:
            yield output.index, _last_event(output.rollout, output.processor)


def _last_event(rollout: Rollout, processor: OutputProcessor) -> SegmentEvent:
    return processor.complete(rollout.finish(rollout.finish_reason or "deadline"))


def _unstarted(group: RequestGroup) -> Iterator[RequestOutput]:
    """Yield all answers of a group as they are before they start."""
    for index, rollout in enumerate(group.resumed):
        yield RequestOutput(group, index, _copy(rollout))
    for prompt in empty_prompts(group):
        while (output := prompt.next_output(group)) is not None:
            yield output


def _copy(rollout: Rollout) -> Rollout:
    """Return a copy that can end while the engine's thread, which may only be slow, goes on.

    If that thread keeps a segment at this moment, its tokens are there before the segment is.
    """
    while True:
        copied = replace(
            rollout,
            token_ids=list(rollout.token_ids),
            segments=list(rollout.segments),
            draws=list(rollout.draws),
            costs=dict(rollout.costs),
            _drawn=set(),
        )
        if len(copied.token_ids) == sum(len(each.token_ids) for each in copied.segments):
            return copied
        time.sleep(0.001)
