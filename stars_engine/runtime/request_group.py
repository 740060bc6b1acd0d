"""A caller's request for answers, from the moment it is made until the last answer is given."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Lock
from typing import Literal

from stars_engine.algorithm.baselines import PlainDecoding, keep_best, samples_of, unjudged
from stars_engine.algorithm.rollout import Rollout
from stars_engine.algorithm.stars import StarsDecoding
from stars_engine.algorithm.verification import DecodingStrategy
from stars_engine.backends.base import PromptedModel
from stars_engine.config import AlignParams, SamplingParams
from stars_engine.core.request import RequestQueue
from stars_engine.errors import EngineClosedError, describe_error
from stars_engine.messages import Chat
from stars_engine.rewards.base import RewardModel
from stars_engine.runtime.futures import CallFuture, reject, resolve
from stars_engine.schedules import AutoSchedule
from stars_engine.types import FinishReason, Prompt, SegmentEvent, StarsResult

PromptFormat = Literal["auto", "chat", "raw"]
Outcome = StarsResult | Exception


@dataclass(frozen=True, slots=True)
class RewardSource:
    """A reward model that the runtime loads when it is first needed.

    Attributes:
        key: Equal for sources that load the same.
        load: Loads it; gets the language model, whose tokenizer it may share.
    """

    key: str
    load: Callable[[PromptedModel], RewardModel]


@dataclass(frozen=True, slots=True)
class PromptRequest:
    """One prompt with its settings.

    Attributes:
        prompt: What to answer.
        reward_prompt: What the reward model reads in its place, or None.
        sampling: The proposal; None for the model's own settings.
        align: The test; its schedule is set.
    """

    prompt: Prompt
    reward_prompt: str | Chat | None
    sampling: SamplingParams | None
    align: AlignParams

    @property
    def num_answers(self) -> int:
        """Answers asked for."""
        return 1 if self.sampling is None else self.sampling.n


class RequestOutput:
    """One answer in the making.

    Attributes:
        group: Whose it is.
        index: Its place among the answers of its call.
        rollout: Its trajectory.
        parts: The rollouts that are run for it: its own, or the samples of Best-of-N.
        decoding: How drafts of the parts become text.
    """

    def __init__(self, group: RequestGroup, index: int, rollout: Rollout) -> None:
        if isinstance(group.decoding, PlainDecoding):
            rollout.align = unjudged(rollout.align)
        self.group, self.index, self.rollout = group, index, rollout
        self.parts = samples_of(rollout, group.num_samples) if group.num_samples else [rollout]
        self.decoding = group.decoding
        self._num_ended = 0

    def note(self, part: Rollout, event: SegmentEvent) -> SegmentEvent | None:
        """Return what the caller sees of an event of one of the parts."""
        if part is self.rollout:
            return event
        self._num_ended += part.finished
        return keep_best(self.rollout, self.parts) if self._num_ended == len(self.parts) else None

    def end(self, reason: FinishReason) -> SegmentEvent:
        """End all parts where they stand."""
        for sample in self.parts:
            if sample is not self.rollout and not sample.finished:
                sample.finish(reason)
        return self.rollout.finish(reason)


@dataclass(eq=False, slots=True)
class RequestGroup:
    """Requests of one caller; their outputs are returned together, or streamed.

    Attributes:
        prompts: The prompts with their settings.
        reward: The reward model.
        prompt_format: What a string prompt is.
        decoding: How drafts become text.
        num_samples: N of Best-of-N, else 0.
        return_exceptions: Whether errors are put among the answers, or raised.
        owner: Kept alive as long as the call.
        mailbox: Where events go, of a call that is streamed.
        is_abandoned: Whether nobody can receive its outcomes any more.
        ended: Set when it is to end where it stands, from any thread.
        future: The outcomes, in order.
        entered: Done when all its rollouts have found room in the queue.
        prepared: Done when all prompts have been read, before any work.
        queue: Its requests in the scheduler, until they start.
        reading: Reads the prompts, one a step, until they are all read.
        reward_model: What `reward` loaded.
        outputs: Those that began, in order.
        resumed: Answers that have begun already and go on, in place of prompts.
    """

    prompts: tuple[PromptRequest, ...]
    reward: RewardSource
    prompt_format: PromptFormat = "auto"
    decoding: DecodingStrategy = field(default_factory=StarsDecoding)
    num_samples: int = 0
    return_exceptions: bool = False
    owner: object = None
    mailbox: Mailbox | None = None
    is_abandoned: Callable[[], bool] | None = None
    ended: bool = False
    future: CallFuture[list[Outcome]] = field(default_factory=CallFuture)
    entered: CallFuture[None] = field(default_factory=CallFuture)
    prepared: CallFuture[None] = field(default_factory=CallFuture)
    submitted_s: float = field(default_factory=time.monotonic)
    queue: RequestQueue | None = None
    reading: Iterator[None] | None = None
    reward_model: RewardModel | None = None
    outputs: list[RequestOutput] = field(default_factory=list)
    resumed: tuple[Rollout, ...] = ()
    _outcomes: dict[int, Outcome] = field(default_factory=dict)

    @property
    def num_answers(self) -> int:
        """Answers asked for."""
        return len(self.resumed) + sum(request.num_answers for request in self.prompts)

    @property
    def judged(self) -> bool:
        """Whether segments are put to the test; those of the baselines are not."""
        return not isinstance(self.decoding, PlainDecoding)

    @property
    def is_settled(self) -> bool:
        """Whether it is judged by settled thresholds; calibrations find theirs meanwhile."""
        return isinstance(self.decoding, StarsDecoding)

    @property
    def wants_thresholds(self) -> bool:
        """Whether thresholds are still to be found for a test that it is put to."""
        return self.judged and any(
            isinstance(request.align.schedule, AutoSchedule) for request in self.prompts
        )

    @property
    def num_rollouts(self) -> int:
        """Rollouts it takes."""
        return self.num_answers * max(1, self.num_samples)

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the deadlines of all its questions have passed; None if they never will."""
        limits = [request.align.deadline_s for request in self.prompts]
        latest_s = max((math.inf if limit is None else limit for limit in limits), default=math.inf)
        return None if latest_s == math.inf else self.submitted_s + latest_s - time.monotonic()

    @property
    def open_outputs(self) -> list[RequestOutput]:
        """Answers that have not ended."""
        return [answer for answer in self.outputs if not answer.rollout.finished]

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to be done for it."""
        all_there = len(self._outcomes) == self.num_answers
        return self.future.done() and (all_there or not self.future.cancelled())

    def begin_anew(self, outputs: list[RequestOutput]) -> None:
        """Put other answers in the place of those that were being prepared."""
        self.reading, self.outputs = None, outputs
        self._outcomes.clear()

    def note(self, answer: RequestOutput, event: SegmentEvent) -> None:
        """Pass an event on; give the outcomes when the last answer has ended."""
        if self.mailbox is not None:
            self.mailbox.put(event)
        if answer.rollout.finished:
            assert event.result is not None
            self.put_outcome(answer.index, answer.rollout.error or event.result)
            self.give_if_complete()

    def put_outcome(self, index: int, outcome: Outcome) -> None:
        """Note one outcome."""
        self._outcomes[index] = outcome

    @property
    def first_error(self) -> Exception | None:
        """The error among the outcomes so far that comes first."""
        errors = (self._outcomes[index] for index in sorted(self._outcomes))
        return next((item for item in errors if isinstance(item, Exception)), None)

    def give_if_complete(self) -> None:
        """Give the outcomes if none is missing."""
        if len(self._outcomes) < self.num_answers:
            return
        outcomes = [self._outcomes[index] for index in range(self.num_answers)]
        errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        if errors and not self.return_exceptions:
            if len(outcomes) > 1:
                _add_note_once(
                    errors[0],
                    f"{len(errors)} of {len(outcomes)} requests failed; return_exceptions=True "
                    "gives the others' results",
                )
            self.fail(errors[0])
        else:
            for future in (self.entered, self.prepared):  # it may have ended before
                resolve(future, None)
            resolve(self.future, outcomes)
            self._say_end()

    def fail(self, error: BaseException) -> None:
        """End the whole call with an error."""
        for future in (self.entered, self.prepared, self.future):
            reject(future, error)
        self._say_end()

    def cancel(self) -> None:
        """Stop working for it; nobody waits for its outcome."""
        self.future.cancel()

    def _say_end(self) -> None:
        if self.mailbox is not None:
            self.mailbox.put(None)


class Mailbox:
    """Events for one reader, who waits in a thread or in an event loop; None ends them."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._items: deque[SegmentEvent | None] = deque()
        self._waiter: Future[None] | None = None

    def put(self, item: SegmentEvent | None) -> None:
        """Put an item in and wake the reader."""
        with self._lock:
            self._items.append(item)
            waiter, self._waiter = self._waiter, None
        if waiter is not None:
            resolve(waiter, None)

    def wait(self) -> Future[None]:
        """Return a future that is done once there is something to take."""
        waiter: Future[None] = Future()
        with self._lock:
            if not self._items:
                self._waiter = waiter
                return waiter
        waiter.set_result(None)
        return waiter

    def take(self) -> SegmentEvent | None:
        """Take the next item, which is there."""
        return self._items.popleft()


def _add_note_once(error: Exception, note: str) -> None:
    if note not in getattr(error, "__notes__", []):
        error.add_note(note)


def closed_at_work(cause: BaseException | None = None) -> EngineClosedError:
    """Return what a call meets whose engine was closed, or has ended by an error."""
    if cause is None:
        return EngineClosedError(
            "the engine was closed before this request had ended. Cure: close it when the results "
            "are there; the error's `result` holds what was accepted"
        )
    error = EngineClosedError(
        f"the engine's thread failed: {describe_error(cause)}. Cure: make a new StarsEngine(config)"
    )
    error.__cause__ = cause
    return error
