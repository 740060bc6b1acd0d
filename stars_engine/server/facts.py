"""What is known about a request: for the access log, metrics and spans. Never its texts."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import HTTPConnection
from starlette.types import Scope

from stars_engine.config import SamplingParams
from stars_engine.server.accounts import counts_of
from stars_engine.types import SegmentEvent, StarsResult

_SETTINGS = ("max_tokens", "temperature", "top_p", "top_k", "seed", "n")


@dataclass(slots=True)
class RequestFacts:
    """The facts of one request.

    Attributes:
        request_id: Its id, which the response carries as `x-request-id`.
        started_s: When it began, on the monotonic clock.
        key: Name of the API key.
        model: The model.
        endpoint: Path of the endpoint as the server defines it; empty for unknown paths.
        streamed: Whether the answer is a stream.
        completed: Whether the whole answer was sent.
        error: Code of the error, if one occurred.
        first_segment_s: Seconds until the first segment was accepted.
        num_choices: Answers that ended.
        finish_reasons: How often answers ended for each reason.
        verdicts: How many segments have each verdict.
        num_attempts: Judged draws.
        tokens: Tokens by kind: prompt, completion, drafted, rejected, surplus, lookahead.
        drafted: Drafted tokens of the answers that have not ended, by prompt and sample.
        seed: The seed of the first answer.
        reward: The reward of the first answer.
        answer_id: The id of the answer.
        settings: How tokens are sampled.
        rewards: Rewards of the kept segments that were judged.
        attempts: Judged drafts of each of these segments.
    """

    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    started_s: float = field(default_factory=time.monotonic)
    key: str | None = None
    model: str | None = None
    endpoint: str = ""
    streamed: bool = False
    completed: bool = False
    error: str | None = None
    first_segment_s: float | None = None
    num_choices: int = 0
    finish_reasons: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    num_attempts: int = 0
    tokens: Counter[str] = field(default_factory=Counter)
    drafted: Counter[tuple[int, int]] = field(default_factory=Counter)
    seed: int | None = None
    reward: float | None = None
    answer_id: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    rewards: list[float] = field(default_factory=list)
    attempts: list[int] = field(default_factory=list)
    _prompts: set[int] = field(default_factory=set)

    def note_call(self, model: str, answer_id: str, sampling: SamplingParams) -> None:
        """Note which model is asked, and how."""
        self.model, self.answer_id = model, answer_id
        self.settings = sampling.model_dump(include={*_SETTINGS})

    def note(self, event: SegmentEvent) -> None:
        """Count what a stream delivers."""
        if event.segment is not None:
            if self.first_segment_s is None:
                self.first_segment_s = time.monotonic() - self.started_s
            attempts = sum(attempt.num_tokens for attempt in event.segment.attempts)
            self.drafted[event.prompt_index, event.sample_index] += max(
                attempts, len(event.segment.token_ids)
            )
        if event.result is not None:
            self.note_result(event.result)

    @property
    def num_charged_tokens(self) -> int:
        """Tokens of prompts, drafts and scored texts, for the limits of the key."""
        kinds = ("prompt", "drafted", "scored")
        return sum(self.tokens[kind] for kind in kinds) + self.drafted.total()

    def note_result(self, result: StarsResult) -> None:
        """Count one answer."""
        usage = result.usage
        self.drafted.pop((result.prompt_index, result.sample_index), None)
        if self.first_segment_s is None:
            self.first_segment_s = usage.first_segment_s
        if self.num_choices == 0:
            self.seed, self.reward = result.seed, result.reward
        self.num_choices += 1
        self.finish_reasons[result.finish_reason] += 1
        self.verdicts.update(segment.verdict for segment in result.segments)
        self.num_attempts += usage.num_attempts
        judged = [segment for segment in result.segments if segment.reward is not None]
        self.rewards += [segment.reward for segment in judged if segment.reward is not None]
        self.attempts += [segment.num_attempts for segment in judged]
        counts = counts_of([result])
        if result.prompt_index in self._prompts:
            del counts["prompt"]
        self._prompts.add(result.prompt_index)
        self.tokens.update(counts)


def facts_in(scope: Scope) -> RequestFacts:
    """Return the facts of the request of an ASGI scope; they are created on first use."""
    state = scope.setdefault("state", {})
    found: RequestFacts = state.setdefault("stars_facts", RequestFacts())
    return found


def facts_of(request: HTTPConnection) -> RequestFacts:
    """Return the facts of a request."""
    return facts_in(request.scope)
