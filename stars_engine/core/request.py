"""One answer in the engine core: its rollout, its reward model and its status."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from stars_engine.algorithm.rollout import Rollout
from stars_engine.algorithm.verification import DecodingStrategy, DraftVerification
from stars_engine.backends.base import DraftRequest, PrefixHandle
from stars_engine.rewards.base import RewardModel
from stars_engine.rewards.reward_requests import probes_of


class RequestStatus(Enum):
    """The status of a request. Only the scheduler changes it.

    Attributes:
        WAITING: Not started, or preempted. No prefix is cached for it.
        RUNNING: Drafts in the next batch that has its segment length.
        WAITING_FOR_DRAFT: A model that answers later drafts for it.
        WAITING_FOR_REWARD: Its drafts are being scored.
        FINISHED: The answer has ended.
    """

    WAITING = "waiting"
    RUNNING = "running"
    WAITING_FOR_DRAFT = "waiting_for_draft"
    WAITING_FOR_REWARD = "waiting_for_reward"
    FINISHED = "finished"


@dataclass(eq=False, slots=True)
class Request:
    """One answer in progress.

    Attributes:
        rollout: The trajectory and state of the answer.
        reward: The reward model that scores it.
        decoding: How drafts become text.
        status: See `RequestStatus`.
        handle: Refers to the language model's cached prefix, if there is one.
        verification: The drafts that are being scored, if any.
        started: Whether the prompt has been computed.
        submitted_s: When it was submitted, on the monotonic clock; its deadline counts from then.
    """

    rollout: Rollout
    reward: RewardModel
    decoding: DecodingStrategy
    status: RequestStatus = RequestStatus.WAITING
    handle: PrefixHandle = field(default_factory=PrefixHandle)
    verification: DraftVerification | None = None
    started: bool = False
    submitted_s: float = field(default_factory=time.monotonic)

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the deadline, counted from submission; None without a deadline."""
        limit = self.rollout.align.deadline_s
        return None if limit is None else self.submitted_s + limit - time.monotonic()

    @property
    def past_deadline(self) -> bool:
        """Whether the deadline has passed."""
        remaining = self.remaining_s
        return remaining is not None and remaining <= 0

    @property
    def holds_prefix(self) -> bool:
        """Whether the language model has its prefix cached."""
        return self.handle.cached is not None

    @property
    def prefix(self) -> tuple[int, ...]:
        """The prompt and all accepted tokens."""
        return (*self.rollout.prompt_ids, *self.rollout.token_ids)

    def draft_requests(self, count: int) -> list[DraftRequest]:
        """Return draft requests for its next draws."""
        rollout = self.rollout
        first = self.decoding.first_draft(rollout)
        prefix = self.prefix
        probes = probes_of(self.reward)
        return [
            DraftRequest(
                token_ids=prefix,
                num_prompt_tokens=len(rollout.prompt_ids),
                uniforms=rollout.token_uniforms(first + offset),
                sampling=rollout.sampling,
                lookahead=rollout.next_lookahead,
                entropies=rollout.align.segment_end == "entropy",
                handle=self.handle,
                probes=probes,
            )
            for offset in range(count)
        ]


class ScheduledRequest(NamedTuple):
    """A request in the batch of a step, with the number of candidates to draft."""

    request: Request
    num_candidates: int


@dataclass(eq=False, slots=True)
class RequestQueue:
    """Requests of one caller that have not started; the scheduler serves callers in turn.

    Attributes:
        waiting: The requests, in order of arrival.
        may_start: Whether the next request may start; if not, other queues go first.
        on_start: Called when a request starts.
        on_drop: Called when a request is dropped before it starts.
    """

    waiting: deque[Request]
    may_start: Callable[[], bool] = lambda: True
    on_start: Callable[[], None] = lambda: None
    on_drop: Callable[[], None] = lambda: None

    @classmethod
    def of(cls, requests: Iterable[Request]) -> RequestQueue:
        """Return a queue whose requests may always start."""
        return cls(deque(requests))
