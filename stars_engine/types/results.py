"""Results: attempts, segments, usage and the events of a stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import computed_field, model_validator

from stars_engine.display.results import result_html
from stars_engine.messages import Chat, Message
from stars_engine.schema import Schema

FinishReason = Literal[
    "stop",
    "length",
    "tool_calls",
    "rejected",
    "fallback",
    "cancelled",
    "deadline",
    "budget",
    "error",
]
Verdict = Literal["accepted", "rejected", "forced", "fallback", "unjudged"]


class Attempt(Schema):
    """One judged candidate of a segment.

    Attributes:
        reward: RM(prompt, accepted text + this candidate + its lookahead).
        threshold: The threshold that the schedule set.
        acceptance_prob: min(1, exp((reward - threshold) / beta)); 0 for an ineligible candidate.
        verdict: "forced" marks a candidate that was kept although no draw was accepted.
        eligible: False if the reward is not finite or below a veto floor; such a candidate is
            never forced.
        num_tokens: Number of its tokens.
        parts: The value of each part of a composite reward, by name, in the part's own units; None
            for a part that failed.
        text: Its text, if `keep_rejected_text` is set.
        ends_text: Whether the model, or a stop string, ends the answer with it.
        alternative: The alternative that proposed it, as a position in `AlignParams.alternatives`;
            None for the plain prompt.
    """

    reward: float
    threshold: float
    acceptance_prob: float
    verdict: Verdict
    eligible: bool
    num_tokens: int
    parts: dict[str, float | None] | None = None
    text: str | None = None
    ends_text: bool = False
    alternative: int | None = None


class Segment(Schema):
    """One kept segment and its attempts.

    Attributes:
        text: Text that became final with this segment. The texts of a result's segments add up
            to its `text`. Incomplete characters, and text that may start a stop string, are
            carried over to the next segment.
        token_ids: The segment's ids, including those that ended the answer.
        reward: RM(prompt, text up to here + lookahead); None if the segment was not judged.
        verdict: "accepted", "forced", "fallback", or "unjudged" for reasoning, tool calls and JSON
            under a grammar (see `AlignParams.judge`).
        attempts: All judged draws in order, including the kept one.
        alternative: The alternative that proposed it; see `Attempt`.
    """

    text: str
    token_ids: tuple[int, ...]
    reward: float | None
    threshold: float | None
    acceptance_prob: float | None
    verdict: Verdict
    attempts: tuple[Attempt, ...]
    alternative: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_derived(cls, values: Any) -> Any:
        """Drop what is computed, so that a record can be read back."""
        if isinstance(values, dict):
            values = {k: v for k, v in values.items() if k not in ("forced", "num_attempts")}
        return values

    @computed_field  # type: ignore[prop-decorator]
    @property
    def forced(self) -> bool:
        """True if the segment was kept although no draw was accepted."""
        return self.verdict == "forced"

    @computed_field  # type: ignore[prop-decorator]
    @property
    def num_attempts(self) -> int:
        """Number of judged draws of this segment, including the kept one."""
        return len(self.attempts)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Omit token ids and attempts, which are many."""
        yield "text", self.text
        for name in ("reward", "threshold", "verdict", "num_attempts"):
            yield name, getattr(self, name)


class Usage(Schema):
    """The cost of one result.

    Attributes:
        num_prompt_tokens: Tokens of the prompt.
        num_kept_tokens: Tokens of the completion.
        num_drafted_tokens: Tokens of all judged draws, including kept tokens.
        num_lookahead_tokens: Lookahead tokens that the reward model read after judged draws.
        num_speculative_tokens: Surplus tokens that were drafted for a next segment while rewards
            were computed, and dropped; drafts that were cancelled count in full.
        num_surplus_tokens: All other generated tokens: those of parallel draws that were not used
            because an earlier draw was accepted, and those after a sentence border or a stop
            string.
        num_surplus_rewards: Rewards computed for draws that were not used.
        num_reward_calls: Completions that were scored and used.
        num_reward_tokens: Tokens that the reward model read for them; 0 without a tokenizer.
        num_attempts: Judged draws.
        num_repeated_draws: Judged draws equal to an earlier draw of their segment.
        num_similar_draws: Judged draws that differ from an earlier draw of their segment in at
            most one position in eight, including repeated ones.
        num_accepted: Accepted draws.
        num_forced: Segments that were kept without acceptance.
        num_ineligible: Draws with a non-finite or vetoed reward.
        num_reward_failures: Rewards that failed and whose candidates were rejected.
        num_truncated_rewards: Rewards whose prompt was truncated to the reward model's context.
        duration_s: Wall time from the start to the end of the request.
        first_segment_s: Wall time until the first segment was kept; None if none was.
    """

    num_prompt_tokens: int = 0
    num_kept_tokens: int = 0
    num_drafted_tokens: int = 0
    num_lookahead_tokens: int = 0
    num_surplus_tokens: int = 0
    num_speculative_tokens: int = 0
    num_surplus_rewards: int = 0
    num_reward_calls: int = 0
    num_reward_tokens: int = 0
    num_attempts: int = 0
    num_repeated_draws: int = 0
    num_similar_draws: int = 0
    num_accepted: int = 0
    num_forced: int = 0
    num_ineligible: int = 0
    num_reward_failures: int = 0
    num_truncated_rewards: int = 0
    duration_s: float = 0.0
    first_segment_s: float | None = None

    @property
    def num_generated_tokens(self) -> int:
        """Total number of generated tokens."""
        return self.num_drafted_tokens + self.num_lookahead_tokens + self.num_surplus_tokens

    @property
    def acceptance_rate(self) -> float:
        """Accepted draws over judged draws; nan if nothing was judged."""
        return self.num_accepted / self.num_attempts if self.num_attempts else float("nan")


class StarsResult(Schema):
    """The aligned answer to one prompt, with a full record of its generation.

    Attributes:
        text: The answer, without the prompt, stop strings and incomplete characters.
        token_ids: The completion's ids, including those that ended it (end-of-text, stop string).
        finish_reason: "stop" (the model, or a stop string, ended the answer), "tool_calls" (the
            same, and the message calls tools), "length", "rejected", "fallback", "cancelled",
            "deadline", "budget" or "error".
        reward: Reward of the final text; None if nothing was scored. With a lookahead, it includes
            the lookahead unless the answer ended by itself or at the token limit.
        segments: The kept segments in order.
        abandoned_attempts: Draws of a last segment that was not kept.
        usage: Cost in tokens, calls and seconds.
        seed: The seed that reproduces this text, together with `sample_index`.
        prompt_index: Position of the prompt in the call.
        sample_index: Which of the `n` samples of the prompt this is.
        schedule_hash: Hash of the threshold schedule.
        message: The answer to a conversation as a message, with content, reasoning and tool calls
            in separate fields. None if the prompt is text to continue.
        prompt: The prompt, in records of the command line; None elsewhere.
        id: The `id` of the prompt in its file, likewise.
        settings_hash: Hash of the settings that the text depends on, likewise.
        schema_version: Version of the schema of this record.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    reward: float | None
    segments: tuple[Segment, ...]
    abandoned_attempts: tuple[Attempt, ...] = ()
    usage: Usage
    seed: int
    prompt_index: int = 0
    sample_index: int = 0
    schedule_hash: str = ""
    message: Message | None = None
    prompt: str | Chat | None = None
    id: str | int | None = None
    settings_hash: str | None = None
    schema_version: Literal[1] = 1

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Show the text and the totals; `segments` and `usage` hold the rest."""
        yield "text", self.text
        yield "reward", self.reward
        yield "finish_reason", self.finish_reason
        yield "num_segments", len(self.segments)
        yield "num_kept_tokens", self.usage.num_kept_tokens
        yield "num_drafted_tokens", self.usage.num_drafted_tokens
        yield "num_forced", self.usage.num_forced
        yield "seed", self.seed

    def _repr_html_(self) -> str:
        """Return the result for a notebook: segments coloured by margin, rejected drafts."""
        return result_html(self)


class ToolCallDelta(Schema):
    """What a step adds to a tool call.

    Attributes:
        index: Which of the answer's calls this is.
        name: The name of the tool, when the call begins; afterwards None.
        id: The id of the call, likewise; if the call is valid, the result has the same id.
        arguments: JSON text that follows the text so far.
    """

    index: int
    name: str | None = None
    id: str | None = None
    arguments: str = ""


class SegmentEvent(Schema):
    """One event of a stream: a kept segment, or the end of the answer.

    Attributes:
        text: Text that became final; may be empty. The texts add up to the result's text.
        content: Text added to the content of the answer's message; None if the prompt is text to
            continue.
        reasoning: Text added to the reasoning of the message, likewise. Tool calls are in neither.
        tool_calls: What was added to tool calls. Only the result tells whether they are valid.
        segment: The kept segment; None on a last event that only ends the answer.
        result: The result, on the last event of each answer.
        prompt_index: Position of the prompt in the call.
        sample_index: Which of the `n` samples of the prompt this is.
    """

    text: str
    content: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCallDelta, ...] = ()
    segment: Segment | None = None
    result: StarsResult | None = None
    prompt_index: int = 0
    sample_index: int = 0
