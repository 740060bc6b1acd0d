"""The requests of one call, from submission until the last answer."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Literal

from stars_engine.algorithm.baselines import PlainDecoding, keep_best, samples_of, unjudged
from stars_engine.algorithm.rollout import Rollout
from stars_engine.algorithm.stars import StarsDecoding
from stars_engine.algorithm.verification import DecodingStrategy
from stars_engine.backends.base import PromptedModel
from stars_engine.chat.replies import ReplyReader
from stars_engine.config import AlignParams, SamplingParams
from stars_engine.core.drafting import model_failed
from stars_engine.core.request import RequestQueue
from stars_engine.errors import EngineClosedError, describe_error
from stars_engine.messages import Chat
from stars_engine.rewards.base import RewardModel
from stars_engine.runtime.futures import RequestFuture, set_exception, set_result
from stars_engine.runtime.output_processor import OutputProcessor
from stars_engine.schedules import AutoSchedule
from stars_engine.types import FinishReason, Prompt, SegmentEvent, StarsResult

PromptFormat = Literal["auto", "chat", "raw", "rendered"]
Outcome = StarsResult | Exception


@dataclass(frozen=True, slots=True)
class RewardSource:
    """A reward model that the runtime loads on first use.

    Attributes:
        key: Equal for sources that load the same model.
        load: Loads the reward model; takes the language model, whose tokenizer it may share.
    """

    key: str
    load: Callable[[PromptedModel], RewardModel]


@dataclass(frozen=True, slots=True)
class PromptRequest:
    """One prompt with its settings.

    Attributes:
        prompt: The prompt.
        reward_prompt: Replaces the prompt for the reward model, if not None.
        sampling: The proposal; None for the model's default.
        align: The acceptance settings; the schedule is set.
    """

    prompt: Prompt
    reward_prompt: str | Chat | None
    sampling: SamplingParams | None
    align: AlignParams

    @property
    def num_answers(self) -> int:
        """Number of answers requested."""
        return 1 if self.sampling is None else self.sampling.n


class RequestOutput:
    """One answer in progress.

    Attributes:
        group: The group to which it belongs.
        index: Its position among the answers of its group.
        rollout: Its trajectory.
        parts: The rollouts that run for it: its own, or the samples of Best-of-N.
        decoding: How drafts of the parts become text.
        processor: Completes its events.
    """

    def __init__(
        self,
        group: RequestGroup,
        index: int,
        rollout: Rollout,
        replies: ReplyReader | None = None,
    ) -> None:
        if isinstance(group.decoding, PlainDecoding):
            rollout.align = unjudged(rollout.align)
        self.group, self.index, self.rollout = group, index, rollout
        self.parts = samples_of(rollout, group.num_samples) if group.num_samples else [rollout]
        self.decoding = group.decoding
        self.processor = OutputProcessor(rollout, replies, group.submitted_s)
        self._num_ended = 0

    def note(self, part: Rollout, event: SegmentEvent) -> SegmentEvent | None:
        """Return the event that the caller gets for an event of a part, if any."""
        if part is self.rollout:
            return event
        self._num_ended += part.finished
        return keep_best(self.rollout, self.parts) if self._num_ended == len(self.parts) else None

    def end(self, reason: FinishReason) -> SegmentEvent:
        """End all parts now."""
        for sample in self.parts:
            if sample is not self.rollout and not sample.finished:
                sample.finish(reason)
        return self.rollout.finish(reason)


@dataclass(eq=False, slots=True)
class RequestGroup:
    """The requests of one call; their outputs are returned together or streamed.

    Attributes:
        prompts: The prompts with their settings.
        reward: The source of the reward model.
        prompt_format: How string prompts are read.
        template_kwargs: Variables of the language model's chat template.
        decoding: How drafts become text.
        num_samples: N of Best-of-N, else 0.
        return_exceptions: Whether errors are returned as results, or raised.
        owner: An object to keep alive until the group is done.
        event_queue: Receives the events if the group is streamed.
        is_abandoned: Whether no caller can receive the outcomes any more.
        cancel_requested: Whether the group should end; set from any thread.
        future: The outcomes, in order.
        admitted: Done when the queue has admitted all rollouts.
        prepared: Done when all prompts have been read, before generation starts.
        queue: Its requests in the scheduler that have not started.
        reading: Reads one prompt per step, until all are read.
        reward_model: The loaded reward model.
        outputs: The answers in progress, in order.
        resumed: Unfinished rollouts to continue, instead of prompts.
    """

    prompts: tuple[PromptRequest, ...]
    reward: RewardSource
    prompt_format: PromptFormat = "auto"
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    decoding: DecodingStrategy = field(default_factory=StarsDecoding)
    num_samples: int = 0
    return_exceptions: bool = False
    owner: object = None
    event_queue: EventQueue | None = None
    is_abandoned: Callable[[], bool] | None = None
    cancel_requested: bool = False
    future: RequestFuture[list[Outcome]] = field(default_factory=RequestFuture)
    admitted: RequestFuture[None] = field(default_factory=RequestFuture)
    prepared: RequestFuture[None] = field(default_factory=RequestFuture)
    submitted_s: float = field(default_factory=time.monotonic)
    queue: RequestQueue | None = None
    reading: Iterator[None] | None = None
    reward_model: RewardModel | None = None
    outputs: list[RequestOutput] = field(default_factory=list)
    resumed: tuple[Rollout, ...] = ()
    _outcomes: dict[int, Outcome] = field(default_factory=dict)

    @property
    def num_answers(self) -> int:
        """Number of answers requested."""
        return len(self.resumed) + sum(request.num_answers for request in self.prompts)

    @property
    def judged(self) -> bool:
        """Whether segments are judged; those of the baselines are not."""
        return not isinstance(self.decoding, PlainDecoding)

    @property
    def has_final_thresholds(self) -> bool:
        """Whether its thresholds are final; those of a calibration are still being fitted."""
        return isinstance(self.decoding, StarsDecoding)

    @property
    def needs_calibration(self) -> bool:
        """Whether its thresholds must be calibrated first."""
        return self.judged and any(
            isinstance(request.align.schedule, AutoSchedule) for request in self.prompts
        )

    @property
    def num_rollouts(self) -> int:
        """Number of rollouts that run for it."""
        return self.num_answers * max(1, self.num_samples)

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the last deadline of its prompts; None if a prompt has no deadline."""
        limits = [request.align.deadline_s for request in self.prompts]
        latest_s = max((math.inf if limit is None else limit for limit in limits), default=math.inf)
        return None if latest_s == math.inf else self.submitted_s + latest_s - time.monotonic()

    @property
    def unfinished_outputs(self) -> list[RequestOutput]:
        """Outputs that have not ended."""
        return [answer for answer in self.outputs if not answer.rollout.finished]

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        all_there = len(self._outcomes) == self.num_answers
        return self.future.done() and (all_there or not self.future.cancelled())

    def replace_outputs(self, outputs: list[RequestOutput]) -> None:
        """Replace the outputs that were being prepared."""
        self.reading, self.outputs = None, outputs
        self._outcomes.clear()

    def note(self, answer: RequestOutput, event: SegmentEvent) -> None:
        """Complete and forward an event; complete the group when the last answer has ended."""
        try:
            event = answer.processor.complete(event)
        except BaseException as error:  # noqa: BLE001 - tokenizers are third-party code
            self.fail(model_failed(error))
            return
        if self.event_queue is not None:
            self.event_queue.put(event)
        if answer.rollout.finished:
            assert event.result is not None
            self.set_outcome(answer.index, answer.rollout.error or event.result)
            self.complete_if_done()

    def set_outcome(self, index: int, outcome: Outcome) -> None:
        """Set the outcome of one answer."""
        self._outcomes[index] = outcome

    @property
    def first_error(self) -> Exception | None:
        """The error with the lowest index among the outcomes so far."""
        errors = (self._outcomes[index] for index in sorted(self._outcomes))
        return next((item for item in errors if isinstance(item, Exception)), None)

    def complete_if_done(self) -> None:
        """Resolve the future if no outcome is missing."""
        if len(self._outcomes) < self.num_answers:
            return
        outcomes = [self._outcomes[index] for index in range(self.num_answers)]
        errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        if errors and not self.return_exceptions:
            if len(outcomes) > 1:
                _add_note_once(
                    errors[0],
                    f"{len(errors)} of {len(outcomes)} requests failed; use "
                    "return_exceptions=True to get the results of the others",
                )
            self.fail(errors[0])
        else:
            for future in (self.admitted, self.prepared):  # the group may have ended earlier
                set_result(future, None)
            set_result(self.future, outcomes)
            self._close_events()

    def fail(self, error: BaseException) -> None:
        """Fail the whole group."""
        for future in (self.admitted, self.prepared, self.future):
            set_exception(future, error)
        self._close_events()

    def cancel(self) -> None:
        """Cancel the group, because no caller waits for its outcomes."""
        self.future.cancel()

    def _close_events(self) -> None:
        if self.event_queue is not None:
            self.event_queue.put(None)


class EventQueue:
    """A queue of events for one reader, in a thread or in an event loop; None marks the end."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._items: deque[SegmentEvent | None] = deque()
        self._waiter: Future[None] | None = None

    def put(self, item: SegmentEvent | None) -> None:
        """Add an item and wake the reader."""
        with self._lock:
            self._items.append(item)
            waiter, self._waiter = self._waiter, None
        if waiter is not None:
            set_result(waiter, None)

    def wait(self) -> Future[None]:
        """Return a future that is done once an item is available."""
        waiter: Future[None] = Future()
        with self._lock:
            if not self._items:
                self._waiter = waiter
                return waiter
        waiter.set_result(None)
        return waiter

    def get(self) -> SegmentEvent | None:
        """Remove and return the next item; call this only after `wait`."""
        return self._items.popleft()


def _add_note_once(error: Exception, note: str) -> None:
    if note not in getattr(error, "__notes__", []):
        error.add_note(note)


def engine_closed_error(cause: BaseException | None = None) -> EngineClosedError:
    """Return the error of requests whose engine was closed, or whose thread failed."""
    if cause is None:
        return EngineClosedError(
            "the engine was closed before this request ended; the error's `result` holds the "
            "accepted text. Hint: close the engine after the results have arrived"
        )
    error = EngineClosedError(
        f"the engine's thread failed: {describe_error(cause)}. Hint: create a new "
        "StarsEngine(config)"
    )
    error.__cause__ = cause
    return error
