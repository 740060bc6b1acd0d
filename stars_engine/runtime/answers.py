"""The answers of one call, which are created when they are about to start."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stars_engine.algorithm.baselines import (
    PlainDecoding,
    count_samples,
    keep_best,
    samples_of,
    unjudged,
)
from stars_engine.algorithm.noise import CounterNoise
from stars_engine.algorithm.rollout import Rollout
from stars_engine.chat.deltas import Replies
from stars_engine.runtime.output_processor import OutputProcessor
from stars_engine.types import FinishReason, SegmentEvent

if TYPE_CHECKING:
    from stars_engine.runtime.request_group import RequestGroup


class RequestOutput:
    """One answer in progress.

    Attributes:
        group: The group to which it belongs.
        index: Its position among the answers of its group.
        rollout: Its trajectory.
        replies: Parses it as a message; None if it is plain text.
        parts: The rollouts that have started for it: its own, or samples of Best-of-N.
        processor: Completes its events.
    """

    def __init__(
        self,
        group: RequestGroup,
        index: int,
        rollout: Rollout,
        replies: Replies | None = None,
    ) -> None:
        if isinstance(group.decoding, PlainDecoding):
            rollout.align = unjudged(rollout.align)
        self.group, self.index, self.rollout, self.replies = group, index, rollout, replies
        self.parts: list[Rollout] = []
        self.processor = OutputProcessor(rollout, replies, group.submitted_s)
        self._num_parts = max(1, group.num_samples)
        self._unstarted: Iterator[Rollout] = (
            samples_of(rollout, group.num_samples) if group.num_samples else iter([rollout])
        )
        self._num_ended = 0

    @property
    def num_unstarted(self) -> int:
        """Number of parts that have not started."""
        return 0 if self.rollout.finished else self._num_parts - len(self.parts)

    def next_part(self) -> Rollout | None:
        """Create the next part; None if all have started or the answer has ended."""
        part = None if self.rollout.finished else next(self._unstarted, None)
        if part is not None:
            self.parts.append(part)
        return part

    def note(self, part: Rollout, event: SegmentEvent) -> SegmentEvent | None:
        """Return the event that the caller gets for an event of a part, if any."""
        if part is self.rollout:
            return event
        self._num_ended += part.finished
        return keep_best(self.rollout, self.parts) if self._num_ended == self._num_parts else None

    def end(self, reason: FinishReason) -> SegmentEvent:
        """End all parts now."""
        self._end_parts(reason)
        return self.rollout.finish(reason)

    def fail(self, error: Exception) -> SegmentEvent:
        """End all parts now with an error."""
        self._end_parts("error")
        return self.rollout.fail(error)

    def _end_parts(self, reason: FinishReason) -> None:
        samples = [part for part in self.parts if part is not self.rollout]
        for sample in samples:
            if not sample.finished:
                sample.finish(reason)
        count_samples(self.rollout, samples)


@dataclass(slots=True)
class CheckedPrompt:
    """A tokenized and checked prompt, from which its answers are created one by one.

    Attributes:
        index: The position of its first answer in the group.
        num_answers: Number of its answers.
        start: The beginning of each answer, which differ in their noise.
        replies: Parses the answers as messages; None if they are plain text.
        num_created: Number of answers created so far.
    """

    index: int
    num_answers: int
    start: Rollout
    replies: Replies | None = None
    num_created: int = 0

    def next_output(self, group: RequestGroup) -> RequestOutput | None:
        """Create the next answer; None if all are created."""
        number = self.num_created
        if number == self.num_answers:
            return None
        self.num_created += 1
        return RequestOutput(group, self.index + number, self.rollout(number), self.replies)

    def rollout(self, number: int) -> Rollout:
        """Return the rollout of one answer."""
        seed, ids = self.start.seed, self.start.prompt_ids
        noise = CounterNoise(seed=seed, prompt_ids=ids, sample_index=number)
        return self.start.fork(noise=noise, sample_index=number)


@dataclass(slots=True)
class PendingAnswers:
    """The answers of a group that have not started, in order.

    Attributes:
        num_rollouts: Number of rollouts that have not started.
    """

    group: RequestGroup
    num_rollouts: int = 0
    _resumed: deque[Rollout] = field(default_factory=deque)
    _prompts: deque[CheckedPrompt] = field(default_factory=deque)
    _later: Iterator[CheckedPrompt] = field(default_factory=lambda: iter(()))
    _current: RequestOutput | None = None
    _num_resumed: int = 0
    _deadlines: list[tuple[float, int, CheckedPrompt]] = field(default_factory=list)

    @property
    def num_answers(self) -> int:
        """Number of answers that have not started."""
        in_parts = 0 if self._current is None else self._current.num_unstarted
        return (self.num_rollouts - in_parts) // self._parts_of_each

    def resume(self, rollouts: Iterable[Rollout]) -> None:
        """Add answers that continue; they come before all others."""
        self._resumed.extend(rollouts)
        self.num_rollouts += len(self._resumed) * self._parts_of_each

    def add(self, prompt: CheckedPrompt) -> None:
        """Add the answers of one prompt."""
        self._prompts.append(prompt)
        self.num_rollouts += prompt.num_answers * self._parts_of_each
        limit_s = prompt.start.align.deadline_s
        if limit_s is not None:
            entry = (self.group.submitted_s + limit_s, prompt.index, prompt)
            heapq.heappush(self._deadlines, entry)

    def add_later(self, prompts: Iterator[CheckedPrompt], num_answers: int) -> None:
        """Add the answers of prompts that are created when all others have started."""
        self._later = prompts
        self.num_rollouts += num_answers * self._parts_of_each

    def start(self) -> tuple[RequestOutput, Rollout] | None:
        """Create the next answer, or the next sample of it; None if nothing is left."""
        while True:
            if self._current is None:
                self._current = self._next_output()
            if self._current is None:
                return None
            part = self._current.next_part()
            if part is not None:
                self.num_rollouts -= 1
                return self._current, part
            self._current = None

    def overdue(self, now_s: float) -> Iterator[tuple[RequestOutput, Rollout]]:
        """Create what cannot start before its deadline, one by one, to be ended."""
        while self._deadlines and self._deadlines[0][0] <= now_s:
            prompt = self._deadlines[0][2]
            output = self._current if self._is_current(prompt) else None
            while output is not None or (output := prompt.next_output(self.group)) is not None:
                while (part := output.next_part()) is not None:
                    self.num_rollouts -= 1
                    yield output, part
                output = None
            heapq.heappop(self._deadlines)

    @property
    def next_expiry_s(self) -> float | None:
        """When the next deadline of an answer that has not started passes (monotonic clock)."""
        while self._deadlines and self._is_started(self._deadlines[0][2]):
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def clear(self) -> None:
        """Forget all answers."""
        self._resumed.clear()
        self._prompts.clear()
        self._later = iter(())
        self._deadlines.clear()
        self._current, self.num_rollouts = None, 0

    @property
    def _parts_of_each(self) -> int:
        return max(1, self.group.num_samples)

    def _is_current(self, prompt: CheckedPrompt) -> bool:
        current = self._current
        return current is not None and 0 <= current.index - prompt.index < prompt.num_answers

    def _is_started(self, prompt: CheckedPrompt) -> bool:
        is_in_parts = self._is_current(prompt) and self._current and self._current.num_unstarted
        return prompt.num_created == prompt.num_answers and not is_in_parts

    def _next_output(self) -> RequestOutput | None:
        if self._resumed:
            self._num_resumed += 1
            return RequestOutput(self.group, self._num_resumed - 1, self._resumed.popleft())
        while True:
            while self._prompts:
                output = self._prompts[0].next_output(self.group)
                if output is not None:
                    return output
                self._prompts.popleft()
            prompt = next(self._later, None)
            if prompt is None:
                return None
            self._prompts.append(prompt)
