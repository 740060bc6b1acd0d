"""One answer in the engine core: its rollout, its reward model and its status."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from math import isqrt
from typing import NamedTuple

from stars_engine.algorithm.proposals import SegmentProposal, next_proposals
from stars_engine.algorithm.rollout import Rollout
from stars_engine.algorithm.verification import DecodingStrategy, DraftVerification, NumDrafts
from stars_engine.backends.base import DraftRequest, PrefixHandle
from stars_engine.problems import is_for_program
from stars_engine.rewards.base import RewardModel
from stars_engine.rewards.reward_requests import probes_of

MAX_TURN = 16  # requests that one caller starts in its turn


class RequestStatus(Enum):
    """The status of a request. Only the scheduler changes it.

    Attributes:
        WAITING: Not started, or preempted. No prefix is cached for it.
        RUNNING: In progress, and ready for the next batch in which there is room for it.
        WAITING_FOR_DRAFT: Its drafts are under way, at an asynchronous model or in a paused batch.
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
        alternative_handles: The same for prompts of alternatives, by position.
        has_one_handle: Whether all its prompts share `handle`, because memory holds only one of
            their prefixes.
        verification: The drafts that are being scored, if any.
        num_drafts: How many draws of the next segment may be drafted at once.
        prompt_computed: Whether the prompt has been computed.
        submitted_s: When it was submitted, on the monotonic clock; its deadline counts from then.
        queue: The queue of its caller, once it has started.
        failure: What its strategy raised instead of `num_drafts`; its next draft raises it.
        waited_for_masks: Whether its latest draft waited for masks of a grammar; None before one.
    """

    rollout: Rollout
    reward: RewardModel
    decoding: DecodingStrategy
    status: RequestStatus = RequestStatus.WAITING
    handle: PrefixHandle = field(default_factory=PrefixHandle)
    alternative_handles: dict[int, PrefixHandle] = field(default_factory=dict)
    has_one_handle: bool = False
    verification: DraftVerification | None = None
    num_drafts: NumDrafts = field(init=False)
    prompt_computed: bool = False
    submitted_s: float = field(default_factory=time.monotonic)
    queue: RequestQueue | None = None
    failure: BaseException | None = None
    waited_for_masks: bool | None = None

    def __post_init__(self) -> None:
        self.update_num_drafts()

    @property
    def expires_at_s(self) -> float | None:
        """When its deadline passes, on the monotonic clock; None without one."""
        limit = self.rollout.align.deadline_s
        return None if limit is None else self.submitted_s + limit

    @property
    def past_deadline(self) -> bool:
        """Whether the deadline has passed."""
        return self.expires_at_s is not None and self.expires_at_s <= time.monotonic()

    @property
    def has_quick_masks(self) -> bool:
        """Whether it has no grammar, or one whose masks were quick in its latest draft."""
        return self.rollout.sampling.grammar is None or self.waited_for_masks is False

    @property
    def holds_prefix(self) -> bool:
        """Whether the language model has its prefix cached, after any of its prompts."""
        handles = (self.handle, *self.alternative_handles.values())
        return any(handle.cached is not None for handle in handles)

    @property
    def prefix(self) -> tuple[int, ...]:
        """The prompt and all accepted tokens."""
        return (*self.rollout.prompt_ids, *self.rollout.token_ids)

    def release_prefixes(self) -> None:
        """Let the model reuse the memory of all its prefixes."""
        for handle in (self.handle, *self.alternative_handles.values()):
            handle.release()

    def use_one_handle(self) -> bool:
        """Keep one prefix at a time from now on; return whether that saves memory."""
        saves = bool(self.alternative_handles) and not self.has_one_handle
        self.has_one_handle = self.has_one_handle or saves
        if saves:
            self.release_prefixes()
        return saves

    def with_handles(self, draws: Sequence[DraftRequest]) -> Sequence[DraftRequest]:
        """Return draft requests with the handles that they are to use now."""
        if not self.has_one_handle:
            return draws
        return [replace(draw, handle=self.handle) for draw in draws]

    def update_num_drafts(self) -> None:
        """Ask the strategy for `num_drafts`, once the draws so far are judged."""
        self.failure = None
        try:
            self.num_drafts = _checked(self.decoding.num_drafts(self.rollout))
        except BaseException as error:  # strategies are third-party code
            if is_for_program(error):
                raise
            self.failure, self.num_drafts = error, NumDrafts(1, 1)

    def draft_requests(self, count: int) -> list[DraftRequest]:
        """Return draft requests for its next draws."""
        if self.failure is not None:
            raise self.failure
        rollout = self.rollout
        first = self.decoding.first_draft(rollout)
        attempts = range(first, first + count)
        probes = probes_of(self.reward)
        answer = tuple(rollout.token_ids)
        prefixes: dict[int | None, tuple[int, ...]] = {}  # one object for all draws after it
        found = []
        for attempt, proposal in zip(attempts, next_proposals(rollout, attempts), strict=True):
            prompt = proposal.alternative if proposal.has_own_prompt else None
            prefix = prefixes.setdefault(prompt, (*proposal.prompt_ids, *answer))
            found.append(
                DraftRequest(
                    token_ids=prefix,
                    num_prompt_tokens=len(proposal.prompt_ids),
                    uniforms=rollout.token_uniforms(attempt),
                    sampling=rollout.sampling,
                    lookahead=rollout.next_lookahead,
                    entropies=rollout.align.segment_end == "entropy",
                    handle=self._handle_of(proposal),
                    # Rewards judge the answer to the plain prompt; hidden states after another
                    # prompt are those of another question.
                    probes=() if proposal.has_own_prompt else probes,
                    forced=proposal.forced,
                    alternative=proposal.alternative,
                )
            )
        return found

    def _handle_of(self, proposal: SegmentProposal) -> PrefixHandle:
        if not proposal.has_own_prompt or self.has_one_handle:
            return self.handle
        assert proposal.alternative is not None
        return self.alternative_handles.setdefault(proposal.alternative, PrefixHandle())


def _checked(bounds: NumDrafts) -> NumDrafts:
    """Return bounds of a number of draws.

    Raises:
        ValueError: They are not allowed.
    """
    least, most = bounds
    if not (isinstance(least, int) and isinstance(most, int) and 1 <= least <= most):
        raise ValueError(
            f"num_drafts returned {bounds!r:.60}; allowed: NumDrafts(least, most) with "
            "1 <= least <= most"
        )
    return NumDrafts(least, most)


def num_new_prompt_tokens(request: Request, before: Request | None) -> int:
    """Return how many tokens of prompts a request adds to a step; equal prompts count once.

    Args:
        request: The request.
        before: The one before it in the step. Equal prompts follow each other.
    """
    is_same = before is not None and before.rollout.prompt_ids is request.rollout.prompt_ids
    return 0 if request.prompt_computed or is_same else sum(request.rollout.prompt_lens)


class ScheduledRequest(NamedTuple):
    """A request in the batch of a step, with the number of candidates to draft."""

    request: Request
    num_candidates: int


class RequestQueue:
    """Requests of one caller that have not started; the scheduler serves callers in turn.

    Requests are created when they are about to start, so a call with many requests costs no more
    than the ones that run.

    Args:
        requests: The requests, in order of arrival; may be a generator.
        size: Number of requests, from which the caller's weight follows; see `turn_size`.
        may_start: Whether the next request may start; if not, other queues go first.
        on_start: Called when a request starts.
    """

    def __init__(
        self,
        requests: Iterable[Request],
        size: int,
        *,
        may_start: Callable[[], bool] = lambda: True,
        on_start: Callable[[], None] = lambda: None,
    ) -> None:
        self._requests = iter(requests)
        self._next: Request | None = None
        self.turn_size = turn_size(size)
        self.may_start, self.on_start = may_start, on_start

    @classmethod
    def of(cls, requests: Iterable[Request]) -> RequestQueue:
        """Return a queue whose requests may always start."""
        given = list(requests)
        return cls(given, len(given))

    @property
    def created(self) -> Request | None:
        """The next request, if it was already created and has not ended."""
        return None if self._next is None or self._next.rollout.finished else self._next

    def peek(self) -> Request | None:
        """Return the next request without removing it; None if there is none."""
        if self._next is None or self._next.rollout.finished:
            unfinished = (each for each in self._requests if not each.rollout.finished)
            self._next = next(unfinished, None)
        return self._next

    def refill_if_empty(self, requests: Iterable[Request]) -> None:
        """Replace the requests if none is left, because further ones have become known."""
        if self.peek() is None:
            self._requests = iter(requests)

    def take(self) -> Request:
        """Remove and return the next request."""
        request = self.peek()
        assert request is not None
        self._next = None
        return request

    def clear(self) -> None:
        """Remove all requests."""
        self._requests, self._next = iter(()), None


def turn_size(num_requests: int) -> int:
    """Return how many requests a caller starts in one turn: the root of its number, at most 16.

    So a large call makes steady progress beside many small ones, and a small one waits for at most
    16 requests of each other call.
    """
    return max(1, min(MAX_TURN, isqrt(num_requests)))
