"""The requests of one call, from submission until the last answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from math import inf
from threading import RLock
from typing import Any, Literal

from stars_engine.algorithm.baselines import PlainDecoding
from stars_engine.algorithm.rollout import Rollout
from stars_engine.algorithm.stars import StarsDecoding
from stars_engine.algorithm.verification import DecodingStrategy
from stars_engine.backends.base import PromptedModel
from stars_engine.config import AlignParams, SamplingParams
from stars_engine.core.drafter import model_failed
from stars_engine.core.request import RequestQueue
from stars_engine.errors import (
    EngineClosedError,
    GenerationError,
    StarsError,
    describe_error,
    is_for_program,
)
from stars_engine.messages import Chat
from stars_engine.rewards.base import RewardModel
from stars_engine.runtime.answers import PendingAnswers, RequestOutput
from stars_engine.runtime.event_queue import EventQueue
from stars_engine.runtime.futures import RequestFuture
from stars_engine.runtime.unread_prompts import UnreadPrompts
from stars_engine.schedules import AutoSchedule
from stars_engine.threads.future_outcomes import set_exception, set_result
from stars_engine.types import Prompt, SegmentEvent, StarsResult

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
        prepared: Done when the first answer may start, see `UnreadPrompts`.
        queue: Its requests in the scheduler that have not started; None before the first may.
        reading: Reads one prompt per step, until all are read; yields what it waits for.
        reward_model: The loaded reward model.
        refused: Errors of prompts that exceed a limit, by position.
        large: Positions of prompts that may take long to read.
        pending: The answers of prompts that have been read, but have not started.
        unread: The prompts that have not been read.
        outputs: The answers in progress, in the order in which they started.
        resumed: Unfinished rollouts to continue, instead of prompts.
        num_answers: Number of answers requested.
        ended: Whether the engine has ended it early.
        is_taken_over: Whether the watchdog answers it, because the engine was late.
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
    reading: Iterator[Future[None] | None] | None = None
    reward_model: RewardModel | None = None
    refused: Mapping[int, StarsError] = field(default_factory=dict)
    large: frozenset[int] = frozenset()
    outputs: dict[RequestOutput, None] = field(default_factory=dict)
    resumed: tuple[Rollout, ...] = ()
    ended: bool = False
    is_taken_over: bool = False
    num_answers: int = field(init=False)
    pending: PendingAnswers = field(init=False)
    unread: UnreadPrompts = field(init=False)
    _outcomes: dict[int, Outcome] = field(default_factory=dict)
    _expires_at_s: float | None = None
    _answering: RLock = field(default_factory=RLock)  # the engine's thread, or the watchdog

    def __post_init__(self) -> None:
        self.num_answers = len(self.resumed) + sum(item.num_answers for item in self.prompts)
        self.pending, self.unread = PendingAnswers(self), UnreadPrompts(self)
        self.pending.resume(self.resumed)

    @property
    def judged(self) -> bool:
        """Whether segments are judged; those of the baselines are not."""
        return not isinstance(self.decoding, PlainDecoding)

    @property
    def has_final_thresholds(self) -> bool:
        """Whether the thresholds of this call are final; a calibration is still fitting its own."""
        return isinstance(self.decoding, StarsDecoding)

    @property
    def needs_calibration(self) -> bool:
        """Whether the thresholds of this call must be calibrated first."""
        return self.judged and any(
            isinstance(request.align.schedule, AutoSchedule) for request in self.prompts
        )

    @property
    def num_rollouts(self) -> int:
        """Number of rollouts that run for this call."""
        return self.num_answers * max(1, self.num_samples)

    @property
    def expires_at_s(self) -> float:
        """When the last deadline of its prompts passes (monotonic clock); inf if one has none."""
        if self._expires_at_s is None:
            limits = [request.align.deadline_s for request in self.prompts]
            last_s = max((inf if limit is None else limit for limit in limits), default=inf)
            self._expires_at_s = self.submitted_s + last_s
        return self._expires_at_s

    @property
    def next_expiry_s(self) -> float | None:
        """When the next deadline of an unstarted answer passes, on the monotonic clock."""
        created = None if self.queue is None else self.queue.created
        times = [self.pending.next_expiry_s, self.unread.next_expiry_s]
        times.append(None if created is None else created.expires_at_s)
        return min((each for each in times if each is not None), default=None)

    @property
    def wants_each_outcome(self) -> bool:
        """Whether outcomes are returned or streamed even if some are errors."""
        return not self.future.done() and (self.return_exceptions or self.event_queue is not None)

    def note(self, answer: RequestOutput, event: SegmentEvent) -> GenerationError | None:
        """Complete and forward an event; complete the group when the last answer has ended.

        Returns:
            Why the answer must end, if its text cannot be read as a reply; else None.
        """
        problem = None
        try:
            event = answer.processor.complete(event)
        except BaseException as error:
            if is_for_program(error):
                raise
            problem = model_failed(error)
            if not answer.rollout.finished:
                return problem
            problem.result = event.result
        with self._answering:
            if self.event_queue is not None and problem is None:
                self.event_queue.put(event)
            if answer.rollout.finished:
                assert event.result is not None
                self._outcomes[answer.index] = answer.rollout.error or problem or event.result
                self.complete_if_done()
        return None

    def clear_queue(self) -> None:
        """Let no further request start."""
        if self.queue is not None:
            self.queue.clear()

    def fail_prompt(self, index: int, num_answers: int, error: StarsError) -> None:
        """Set the outcomes of a prompt that cannot be read, from an index on."""
        with self._answering:
            self._outcomes |= dict.fromkeys(range(index, index + num_answers), error)

    @property
    def first_error(self) -> Exception | None:
        """The error with the lowest index among the outcomes so far."""
        errors = (self._outcomes[index] for index in sorted(self._outcomes))
        return next((item for item in errors if isinstance(item, Exception)), None)

    @property
    def outcomes(self) -> dict[int, Outcome]:
        """The outcomes so far, by position."""
        return dict(self._outcomes)

    @property
    def num_done(self) -> int:
        """Number of answers that have ended."""
        return len(self._outcomes)

    @property
    def is_complete(self) -> bool:
        """Whether no outcome is missing."""
        return self.num_done >= self.num_answers

    def complete_if_done(self) -> None:
        """Resolve the future if no outcome is missing."""
        if self.is_complete:
            self._complete([self._outcomes[index] for index in range(self.num_answers)])

    def complete_at_deadline(self, events: Mapping[int, SegmentEvent]) -> None:
        """Resolve the future now, with last events of the answers without an outcome."""
        with self._answering:
            if self.future.done():
                return
            found = {**{index: event.result for index, event in events.items()}, **self._outcomes}
            for index in sorted(events.keys() - self._outcomes.keys()):
                if self.event_queue is not None:
                    self.event_queue.put(events[index])
            outcomes = [found[index] for index in range(self.num_answers)]
            self._complete([outcome for outcome in outcomes if outcome is not None])

    def _complete(self, outcomes: list[Outcome]) -> None:
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


def missed_deadline_error(group: RequestGroup) -> GenerationError:
    """Return the error of a call whose text cannot be read while the engine's thread hangs."""
    return GenerationError(
        f"the deadline passed {time.monotonic() - group.expires_at_s:.1f} s ago, and the engine's "
        "thread does not answer. Hint: the log names the code in which it hangs; fix that model or "
        "reward, or run it in a process of its own"
    )


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
