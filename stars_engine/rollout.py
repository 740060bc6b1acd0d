"""One request's trajectory and state, and the reading of drafts into candidates."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stars_engine.backends.base import DraftRequest, LanguageModel
from stars_engine.config import AlignParams, SamplingParams
from stars_engine.errors import AlignmentError, RequestError
from stars_engine.noise import Noise
from stars_engine.rewards.base import Score
from stars_engine.schedules import Progress
from stars_engine.text import find_stop, held_back
from stars_engine.types import (
    Attempt,
    FinishReason,
    RewardInput,
    RewardPrompt,
    Segment,
    SegmentEvent,
    StarsResult,
    Usage,
    Verdict,
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A drafted segment, read as a continuation of its prefix.

    Attributes:
        token_ids: The segment's ids, up to and including what ended the answer.
        text: The whole completion with it, cut before a stop string or an incomplete character.
        reward_ids: The same completion as token ids.
        finish_reason: Why the answer would end with it, or None.
    """

    token_ids: tuple[int, ...]
    text: str
    reward_ids: tuple[int, ...]
    finish_reason: FinishReason | None


@dataclass(frozen=True, slots=True)
class Draw:
    """A judged candidate."""

    candidate: Candidate
    attempt: Attempt


@dataclass(slots=True, eq=False)
class Rollout:
    """One request's trajectory: what was asked, what is kept so far, what it has cost.

    Attributes:
        prompt_ids: The prompt, at least one token.
        reward_prompt: The prompt as the reward model sees it.
        sampling: The proposal; `max_tokens` fits the context.
        align: The test; its schedule is set.
        noise: Where all of the rollout's randomness comes from.
        seed: Reported in the result.
        slot: The language model's record of the prefix, once prefilled.
        token_ids: The completion so far.
        text: Its text; what `segments` have emitted plus what is held back.
        draws: Judged draws of the segment at hand.
        prompt_reward: RM(x, ""), where the schedule needs it.
        prefix_reward: RM(x, completion so far).
        reward: RM(x, completion), where it was asked.
        reward_parts: What the parts of a composite reward add to it.
        error: What ended the request, if anything failed.
    """

    prompt_ids: tuple[int, ...]
    reward_prompt: RewardPrompt
    sampling: SamplingParams
    align: AlignParams
    noise: Noise
    seed: int = 0
    prompt_index: int = 0
    sample_index: int = 0
    slot: Any = None
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    segments: list[Segment] = field(default_factory=list)
    draws: list[Draw] = field(default_factory=list)
    abandoned: tuple[Attempt, ...] = ()
    prompt_reward: float = math.nan
    prefix_reward: float = math.nan
    reward: float | None = None
    reward_parts: Mapping[str, float | None] | None = None
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    costs: dict[str, int] = field(default_factory=dict)
    started_s: float = field(default_factory=time.monotonic)
    ended_s: float = math.nan
    _num_emitted: int = 0

    # --- what the loop asks ---

    @property
    def finished(self) -> bool:
        """Whether the answer has ended."""
        return self.finish_reason is not None

    @property
    def next_len(self) -> int:
        """Tokens of the next segment: fewer at the token limit."""
        return min(self.align.segment_len, self.sampling.max_tokens - len(self.token_ids))

    @property
    def max_attempts(self) -> int:
        """Draws per segment; at temperature 0 all would be equal, so one is made."""
        return 1 if self.sampling.temperature == 0 else self.align.max_attempts

    @property
    def needs_prompt_reward(self) -> bool:
        """Whether RM(x, "") is still to be computed for the schedule."""
        assert self.align.schedule is not None
        return self.align.schedule.needs_prompt_reward and math.isnan(self.prompt_reward)

    @property
    def over_budget(self) -> bool:
        """Whether one more draw could exceed `max_drafted_tokens`."""
        limit = self.align.max_drafted_tokens
        drafted = self.costs.get("num_drafted_tokens", 0)
        return limit is not None and drafted + self.next_len > limit

    @property
    def remaining_s(self) -> float | None:
        """Seconds until `deadline_s` has passed since the request began; None if there is none."""
        limit = self.align.deadline_s
        return None if limit is None else self.started_s + limit - time.monotonic()

    @property
    def past_deadline(self) -> bool:
        """Whether the deadline has passed."""
        remaining = self.remaining_s
        return remaining is not None and remaining <= 0

    def progress(self, candidate: Candidate) -> Progress:
        """Return where the answer would stand with this candidate."""
        return Progress(
            segment_index=len(self.segments),
            num_tokens=len(self.token_ids) + len(candidate.token_ids),
            max_tokens=self.sampling.max_tokens,
            prefix_reward=self.prefix_reward,
            prompt_reward=self.prompt_reward,
        )

    def draft_request(self, attempt: int) -> DraftRequest:
        """Ask for one draw of the next segment."""
        uniforms = self.noise.token_uniforms(
            position=len(self.token_ids), attempt=attempt, count=self.next_len
        )
        return DraftRequest(self.slot, uniforms, self.sampling)

    def reward_input(self, candidate: Candidate) -> RewardInput:
        """Ask for the reward of the whole completion with this candidate."""
        finished = candidate.finish_reason == "stop"
        return RewardInput(self.reward_prompt, candidate.text, candidate.reward_ids, finished)

    # --- reading a draft ---

    def read(self, draft: Sequence[int], model: LanguageModel) -> Candidate:
        """Read drafted ids as a continuation: end of text, stop strings, the token limit."""
        ended = model.is_end(draft[-1], self.sampling)
        body = draft[:-1] if ended else draft  # an end-of-text token has no text
        text, ids = self._decode(body, model)
        # A stop string may have begun in an earlier segment, but did not end there.
        longest = max(map(len, self.sampling.stop), default=0)
        found = find_stop(text, self.sampling.stop, max(0, len(self.text) - longest))
        if found is not None:
            size = self._size_with_stop(body, model, found)
            text = text[:found]
            ids = self._ids_of(text, ids, model)
            return Candidate(tuple(draft[:size]), text, ids, "stop")
        reason: FinishReason | None = "stop" if ended else None
        if reason is None and len(self.token_ids) + len(draft) >= self.sampling.max_tokens:
            reason = "length"
        return Candidate(tuple(draft), text, ids, reason)

    def _decode(self, ids: Sequence[int], model: LanguageModel) -> tuple[str, tuple[int, ...]]:
        """Return the completion's text with `ids` appended, and the ids that the text stands for.

        Text once accepted is never taken back, also where a decoder would rewrite it (byte
        fallback turns a whole run of bytes invalid when one of them is).
        """
        whole = [*self.token_ids, *ids]
        text, size = model.completion_text(self.prompt_ids, whole)
        if not text.startswith(self.text):
            tail, size = model.completion_text([*self.prompt_ids, *self.token_ids], ids)
            text, size = self.text + tail, len(self.token_ids) + size
        return text, tuple(whole[:size])

    def _size_with_stop(self, body: Sequence[int], model: LanguageModel, found: int) -> int:
        """Return how many drafted tokens it took until the stop string at `found` was complete."""
        for size in range(1, len(body)):
            text, _ = self._decode(body[:size], model)
            if find_stop(text, self.sampling.stop, found) == found:
                return size
        return len(body)

    def _ids_of(self, text: str, ids: Sequence[int], model: LanguageModel) -> tuple[int, ...]:
        """Return ids for `text`, a cut completion: whole tokens kept, the rest encoded anew."""
        for size in range(len(ids), -1, -1):
            part, used = model.completion_text(self.prompt_ids, ids[:size])
            if text.startswith(part) and used == size:
                return (*ids[:size], *model.encode_continuation(text[len(part) :]))
        return tuple(model.encode_continuation(text))

    # --- moving on ---

    def record(self, draw: Draw, score: Score) -> None:
        """Count a judged draw, surplus no longer, and remember it until its segment is settled."""
        self.draws.append(draw)
        self.count(
            num_surplus_tokens=-len(draw.candidate.token_ids),
            num_surplus_rewards=-1,
            num_attempts=1,
            num_accepted=draw.attempt.verdict == "accepted",
            num_ineligible=not score.eligible,
            num_drafted_tokens=len(draw.candidate.token_ids),
        )
        self.count_reward(score)

    def keep(self, candidate: Candidate, verdict: Verdict, attempt: Attempt | None) -> SegmentEvent:
        """Append a candidate to the completion."""
        self.token_ids += candidate.token_ids
        self.text = candidate.text
        if attempt is not None:
            self.prefix_reward = self.reward = attempt.reward
            self.reward_parts = attempt.parts
        if candidate.finish_reason is not None:
            held = 0
        else:
            held = held_back(self.text, self.sampling.stop)
        segment = Segment(
            text=self._emit(len(self.text) - held),
            token_ids=candidate.token_ids,
            reward=attempt.reward if attempt else None,
            threshold=attempt.threshold if attempt else None,
            acceptance_prob=attempt.acceptance_prob if attempt else None,
            verdict=verdict,
            attempts=tuple(draw.attempt for draw in self.draws),
        )
        self.segments.append(segment)
        self.draws.clear()
        self.count(num_forced=verdict == "forced")
        if candidate.finish_reason is not None:
            self._end(candidate.finish_reason)
        return self._event(segment.text, segment)

    def force(self, index: int) -> SegmentEvent:
        """Keep a rejected draw all the same, and flag it."""
        draw = self.draws[index]
        attempt = draw.attempt.replace(verdict="forced")
        self.draws[index] = Draw(draw.candidate, attempt)
        return self.keep(draw.candidate, "forced", attempt)

    def finish(self, reason: FinishReason, *, fallback_text: str | None = None) -> SegmentEvent:
        """End the answer before the segment at hand; what was held back becomes final."""
        rest = self._emit(len(self.text))
        segment = None
        if fallback_text is not None:
            self.text += fallback_text
            self.reward = None  # nobody judged the text with the fallback in it
            segment = Segment(
                text=rest + fallback_text,
                token_ids=(),
                reward=None,
                threshold=None,
                acceptance_prob=None,
                verdict="fallback",
                attempts=tuple(draw.attempt for draw in self.draws),
            )
            self.segments.append(segment)
            rest = segment.text
        else:
            self.abandoned = tuple(draw.attempt for draw in self.draws)
            if rest:
                last = self.segments[-1]
                self.segments[-1] = last.replace(text=last.text + rest)
        self.draws.clear()
        self._end(reason)
        return self._event(rest, segment)

    def fail(self, error: Exception) -> SegmentEvent:
        """End the answer with an error that carries what was accepted."""
        self.error = error
        event = self.finish("rejected" if isinstance(error, AlignmentError) else "error")
        if isinstance(error, RequestError):
            error.result = event.result
        return event

    def count(self, **amounts: int) -> None:
        """Add to the costs, by the names of `Usage`."""
        for name, amount in amounts.items():
            self.costs[name] = self.costs.get(name, 0) + amount

    def count_reward(self, score: Score) -> None:
        """Count a reward that was looked at."""
        self.count(
            num_reward_calls=1,
            num_reward_tokens=score.num_tokens,
            num_reward_failures=score.failed,
            num_truncated_rewards=score.truncated,
        )

    def result(self) -> StarsResult:
        """Return the account of an ended rollout."""
        assert self.finish_reason is not None
        assert self.align.schedule is not None
        usage = Usage(
            num_prompt_tokens=len(self.prompt_ids),
            num_kept_tokens=len(self.token_ids),
            duration_s=self.ended_s - self.started_s,
            **self.costs,
        )
        return StarsResult(
            text=self.text,
            token_ids=tuple(self.token_ids),
            finish_reason=self.finish_reason,
            reward=self.reward,
            segments=tuple(self.segments),
            abandoned_attempts=self.abandoned,
            usage=usage,
            seed=self.seed,
            prompt_index=self.prompt_index,
            sample_index=self.sample_index,
            schedule_hash=self.align.schedule.content_hash(),
        )

    def _emit(self, upto: int) -> str:
        text = self.text[self._num_emitted : upto]
        self._num_emitted = max(self._num_emitted, upto)
        return text

    def _end(self, reason: FinishReason) -> None:
        self.finish_reason = reason
        self.ended_s = time.monotonic()
        self.slot = None  # frees the prefix's memory

    def _event(self, text: str, segment: Segment | None) -> SegmentEvent:
        return SegmentEvent(
            text=text,
            segment=segment,
            result=self.result() if self.finished else None,
            prompt_index=self.prompt_index,
            sample_index=self.sample_index,
        )
