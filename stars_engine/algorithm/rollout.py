"""The trajectory and state of one answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stars_engine.algorithm.alternatives import AlternativeIds
from stars_engine.algorithm.candidate import Candidate, Detokenizer, Draft, DraftParser, Draw
from stars_engine.algorithm.diversity import count_repeats
from stars_engine.algorithm.features import Features, extended
from stars_engine.algorithm.noise import Noise
from stars_engine.algorithm.spans import AnswerSpans
from stars_engine.config import AlignParams, SamplingParams
from stars_engine.errors import AlignmentError, with_result
from stars_engine.schedules import Progress
from stars_engine.tokenization.stop_strings import stop_strings
from stars_engine.types import (
    Attempt,
    FinishReason,
    RewardPrompt,
    Score,
    Segment,
    SegmentEvent,
    StarsResult,
    Usage,
    Verdict,
)


@dataclass(slots=True, eq=False)
class Rollout:
    """One answer: its request, the text accepted so far, and its cost.

    Attributes:
        prompt_ids: The prompt, at least one token.
        reward_prompt: The prompt as the reward model sees it.
        sampling: The proposal; `max_tokens` fits the context.
        align: The acceptance settings; the schedule is set.
        noise: The source of all randomness of the rollout.
        seed: The seed that the result reports.
        prefill: The start of the answer that the prompt already contains. The reward model sees it.
        fallback: The part of `text` that replaces an answer.
        spans: Finds the spans of the completion that are scored; None if it is plain text.
        alternatives: Alternatives to the prompt, from which some draws are proposed.
        token_ids: The completion so far.
        text: Its text: what `segments` have emitted plus what is held back.
        features: Features of the prompt's last token and of the completion's tokens.
        draws: Judged draws of the current segment.
        prompt_reward: RM(x, ""), if the schedule needs it.
        prefix_reward: RM(x, completion so far), including the lookahead that was scored with it.
        reward: RM(x, completion), if it was computed.
        reward_parts: Values of the parts of a composite reward.
        error: The error that ended the request, if one did.
        num_forked_segments: Segments that it had when it was forked; the original counts them.
        num_forked_tokens: Tokens of those segments.
    """

    prompt_ids: tuple[int, ...]
    reward_prompt: RewardPrompt
    sampling: SamplingParams
    align: AlignParams
    noise: Noise
    seed: int = 0
    prompt_index: int = 0
    sample_index: int = 0
    prefill: str = ""
    fallback: str = ""
    spans: AnswerSpans | None = None
    alternatives: tuple[AlternativeIds, ...] = ()
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    features: Features = field(default_factory=dict)
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
    num_forked_segments: int = 0
    num_forked_tokens: int = 0
    _num_emitted: int = 0
    _drawn: set[tuple[int, ...]] = field(default_factory=set)  # draws of the current segment

    # --- state ---

    @property
    def finished(self) -> bool:
        """Whether the answer has ended."""
        return self.finish_reason is not None

    @property
    def emitted_text(self) -> str:
        """The text of all events so far."""
        return self.text[: self._num_emitted]

    @property
    def prompt_lens(self) -> list[int]:
        """Tokens of each prompt that is cached for it: the plain one, and those of alternatives."""
        others = (each.prompt_ids for each in self.alternatives)
        return [len(self.prompt_ids), *(len(ids) for ids in others if ids is not None)]

    @property
    def next_len(self) -> int:
        """Maximum number of tokens of the next segment; smaller near the token limit."""
        return min(self.align.segment_len, self.sampling.max_tokens - len(self.token_ids))

    @property
    def num_kept_segments(self) -> int:
        """Number of segments kept so far, without a fallback."""
        return sum(segment.verdict != "fallback" for segment in self.segments)

    @property
    def max_attempts(self) -> int:
        """Draws of the current segment; the schedule may limit them by the prefix's reward.

        One at temperature 0 without alternatives: all would be equal.
        """
        if self.sampling.temperature == 0 and not self.alternatives:
            return 1
        assert self.align.schedule is not None
        limit = self.align.schedule.draw_limit(len(self.segments), self.prefix_reward)
        return self.align.max_attempts if limit is None else min(limit, self.align.max_attempts)

    @property
    def needs_prompt_reward(self) -> bool:
        """Whether the schedule needs RM(x, "") and it is not known yet."""
        assert self.align.schedule is not None
        return self.align.schedule.needs_prompt_reward and math.isnan(self.prompt_reward)

    @property
    def over_budget(self) -> bool:
        """Whether one more draw could exceed `max_drafted_tokens`."""
        limit = self.align.max_drafted_tokens
        drafted = self.costs.get("num_drafted_tokens", 0)
        return limit is not None and drafted + self.next_len > limit

    def progress(self, candidate: Candidate) -> Progress:
        """Return the progress of the answer if this candidate were accepted."""
        return Progress(
            segment_index=len(self.segments),
            num_tokens=len(self.token_ids) + len(candidate.token_ids),
            max_tokens=self.sampling.max_tokens,
            prefix_reward=self.prefix_reward,
            prompt_reward=self.prompt_reward,
            ends_text=candidate.finish_reason == "stop",
        )

    def features_with(self, candidate: Candidate, num_tokens: int) -> Features:
        """Return the features of the completion, with the first tokens of a candidate's draft."""
        num_before = len(self.token_ids)
        return extended(
            self.features, candidate.features, num_before=num_before, num_new=num_tokens
        )

    def token_uniforms(self, attempt: int) -> Sequence[float]:
        """Return the uniforms of one draw of the next segment, one per token."""
        return self.noise.token_uniforms(
            position=len(self.token_ids), attempt=self._stream(attempt), count=self.next_len
        )

    @property
    def next_lookahead(self) -> int:
        """Number of lookahead tokens after the next segment; smaller near the token limit."""
        room = self.sampling.max_tokens - len(self.token_ids) - self.next_len
        return min(self.align.lookahead, room)

    def _stream(self, attempt: int) -> int:
        """Return the stream of token uniforms for one draw of the next segment.

        Segments of fixed length use uniforms of disjoint positions, so the attempt is the stream.
        Otherwise, a rejected draw may have used uniforms of positions that the next segment draws
        again. So the stream is the number of draws rejected so far in the whole answer, which is 0
        in plain sampling.
        """
        if self.align.segment_end == "length":
            return attempt
        rejected = (
            len(segment.attempts) - (segment.verdict == "accepted") for segment in self.segments
        )
        return sum(rejected) + attempt

    def read(self, draft: Draft, model: Detokenizer) -> Candidate:
        """Parse a draft as the continuation of this rollout."""
        parser = DraftParser(
            model, self.prompt_ids, self.token_ids, self.text, self.sampling, self.align
        )
        return parser.parse(draft)

    def fork(self, **changes: Any) -> Rollout:
        """Return a rollout, with changes, that continues the same text and counts its own costs."""
        return replace(
            self,
            token_ids=list(self.token_ids),
            segments=list(self.segments),
            draws=[],
            abandoned=(),
            finish_reason=None,
            error=None,
            costs={},
            num_forked_segments=self.num_kept_segments,
            num_forked_tokens=len(self.token_ids),
            _drawn=set(),
            **changes,
        )

    # --- transitions ---

    def record(self, draw: Draw, score: Score) -> None:
        """Record a judged draw of the current segment; it no longer counts as surplus."""
        ids, num_lookahead = draw.candidate.token_ids, draw.candidate.num_lookahead_tokens
        self.count(
            num_surplus_tokens=-len(ids) - num_lookahead,
            num_surplus_rewards=-1,
            num_attempts=1,
            num_accepted=draw.attempt.verdict == "accepted",
            num_ineligible=not score.eligible,
            num_drafted_tokens=len(ids),
            num_lookahead_tokens=num_lookahead,
            **count_repeats(ids, self._drawn),
        )
        self.count_reward(score)
        self.draws.append(draw)
        self._drawn.add(ids)

    def keep(self, candidate: Candidate, verdict: Verdict, attempt: Attempt | None) -> SegmentEvent:
        """Append a candidate to the completion."""
        self.features = self.features_with(candidate, len(candidate.token_ids))
        self.token_ids += candidate.token_ids
        self.text = candidate.text
        if attempt is not None:
            self.prefix_reward = self.reward = attempt.reward
            self.reward_parts = attempt.parts
        ends = candidate.finish_reason is not None
        held = 0 if ends else stop_strings(self.sampling.stop).held_back(self.text)
        segment = Segment(
            text=self._emit(len(self.text) - held),
            token_ids=candidate.token_ids,
            reward=attempt.reward if attempt else None,
            threshold=attempt.threshold if attempt else None,
            acceptance_prob=attempt.acceptance_prob if attempt else None,
            verdict=verdict,
            attempts=tuple(draw.attempt for draw in self.draws),
            alternative=candidate.alternative,
        )
        self.segments.append(segment)
        self.draws.clear()
        self._drawn.clear()
        self.count(num_forced=verdict == "forced")
        if candidate.finish_reason is not None:
            self.finish_reason = candidate.finish_reason
        return self._event(segment.text, segment)

    def force(self, index: int) -> SegmentEvent:
        """Keep a rejected draw and mark it as forced."""
        draw = self.draws[index]
        attempt = draw.attempt.replace(verdict="forced")
        self.draws[index] = Draw(draw.candidate, attempt)
        return self.keep(draw.candidate, "forced", attempt)

    def finish(self, reason: FinishReason, *, fallback_text: str | None = None) -> SegmentEvent:
        """End the answer before the current segment; text that was held back becomes final."""
        if fallback_text is not None:
            self.text += fallback_text
            self.fallback = fallback_text
            self.reward = None  # the text including the fallback was not scored
        text = self._emit(len(self.text))
        segment = None
        if fallback_text is not None:
            segment = Segment(
                text=text,
                token_ids=(),
                reward=None,
                threshold=None,
                acceptance_prob=None,
                verdict="fallback",
                attempts=tuple(draw.attempt for draw in self.draws),
            )
            self.segments.append(segment)
        else:
            self.abandoned = tuple(draw.attempt for draw in self.draws)
            if text:
                last = self.segments[-1]
                self.segments[-1] = last.replace(text=last.text + text)
        self.draws.clear()
        self.finish_reason = reason
        return self._event(text, segment)

    def fail(self, error: Exception) -> SegmentEvent:
        """End the answer with an error that carries the accepted text."""
        event = self.finish("rejected" if isinstance(error, AlignmentError) else "error")
        self.error = with_result(error, event.result)
        return event

    def count(self, **amounts: int) -> None:
        """Add to the costs, by the field names of `Usage`."""
        for name, amount in amounts.items():
            self.costs[name] = self.costs.get(name, 0) + amount

    def count_reward(self, score: Score) -> None:
        """Count a reward that was used."""
        self.count(
            num_reward_calls=1,
            num_reward_tokens=score.num_tokens,
            num_reward_failures=score.failed,
            num_truncated_rewards=score.truncated,
        )

    def result(self) -> StarsResult:
        """Return the result of a finished rollout, without a message and a duration."""
        assert self.finish_reason is not None
        assert self.align.schedule is not None
        usage = Usage(
            num_prompt_tokens=len(self.prompt_ids),
            num_kept_tokens=len(self.token_ids),
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

    def _event(self, text: str, segment: Segment | None) -> SegmentEvent:
        return SegmentEvent(
            text=text,
            segment=segment,
            result=self.result() if self.finished else None,
            prompt_index=self.prompt_index,
            sample_index=self.sample_index,
        )
