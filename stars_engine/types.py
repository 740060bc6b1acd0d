"""The data that crosses floors: prompts in, accepted segments and results out. All frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, field_validator

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


# --- prompts -------------------------------------------------------------------------------------


class TokenIds(Schema):
    """A prompt that is already token ids of the model; nothing is added to it."""

    ids: tuple[int, ...] = Field(description="token ids of the language model", examples=[[1, 15]])

    def __init__(self, ids: Any = (), /, **values: Any) -> None:
        super().__init__(**({"ids": ids} | values))

    @field_validator("ids")
    @classmethod
    def _are_ids(cls, ids: tuple[int, ...]) -> tuple[int, ...]:
        if any(not 0 <= token < 2**31 for token in ids):  # no vocabulary is larger
            raise ValueError("token ids are integers from 0 up to the size of the vocabulary")
        return ids


class RenderedPrompt(Schema):
    """Text that a template has already rendered: control tokens in it are parsed as such.

    The only prompt whose text may carry control tokens; never build one from untrusted text.
    """

    text: str = Field(description="the rendered text, control tokens included")
    messages: tuple[Message, ...] | None = Field(
        default=None, description="what the reward model sees in place of the text"
    )
    add_special_tokens: bool = Field(
        default=False,
        description="put what the tokenizer puts before a text, such as begin of text, before this "
        "one, unless it is there",
    )

    def __init__(self, text: Any = "", /, **values: Any) -> None:
        super().__init__(**({"text": text} | values))


Prompt = str | Chat | TokenIds | RenderedPrompt


@dataclass(frozen=True, slots=True)
class RewardPrompt:
    """A prompt as reward models see it: each takes the form it can read.

    Attributes:
        text: Plain text, never with control tokens.
        token_ids: The language model's ids of the prompt; None when the caller gave the reward
            model another prompt than the language model.
        messages: The turns, when the prompt was a conversation.
    """

    text: str
    token_ids: tuple[int, ...] | None = None
    messages: tuple[Message, ...] | None = None


@dataclass(frozen=True, slots=True)
class RewardInput:
    """What one reward is asked of: a prompt and the *whole* completion so far.

    Attributes:
        prompt: The prompt.
        text: Completion text; stop strings and an incomplete last character are cut off. With
            `AlignParams.lookahead` the candidate's greedy continuation is part of it.
        token_ids: The same completion as ids of the language model, end-of-text not included.
        finished: True when the model itself, or a stop string, ended the answer here.
    """

    prompt: RewardPrompt
    text: str
    token_ids: tuple[int, ...]
    finished: bool = False


# --- results -------------------------------------------------------------------------------------


class Attempt(Schema):
    """One judged candidate of a segment.

    Attributes:
        reward: RM(prompt, accepted text + this candidate + its lookahead).
        threshold: What the schedule asked of it.
        acceptance_prob: min(1, exp((reward - threshold) / beta)); 0 for an ineligible candidate.
        verdict: "forced" marks the candidate that was kept although none had been accepted.
        eligible: False if the reward was not finite or under the reward's veto floor; such a
            candidate is never forced.
        num_tokens: Its tokens.
        parts: Of a composite reward, the value of each part by name, in the part's own units; None
            for one that failed.
        text: Its text, where `keep_rejected_text` asks for it.
        ends_text: Whether the model, or a stop string, ends the answer with it.
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


class Segment(Schema):
    """One kept segment: what it says and what it took to get it.

    Attributes:
        text: Text that became final with this segment. The texts of a result's segments add up
            to its `text`; characters still incomplete, or that may begin a stop string, are
            carried into the next segment.
        token_ids: The segment's ids, those that ended the answer included.
        reward: RM(prompt, text up to here + lookahead); None where nothing was judged.
        verdict: "accepted", "forced", "fallback", or "unjudged" for reasoning, calls of tools and
            JSON that a grammar rules (`AlignParams.judge`).
        attempts: Every judged draw in order, the kept one included.
    """

    text: str
    token_ids: tuple[int, ...]
    reward: float | None
    threshold: float | None
    acceptance_prob: float | None
    verdict: Verdict
    attempts: tuple[Attempt, ...]

    @property
    def forced(self) -> bool:
        """True if no draw was accepted and one was kept all the same."""
        return self.verdict == "forced"

    @property
    def num_attempts(self) -> int:
        """Judged draws of this segment, the kept one included."""
        return len(self.attempts)


class Usage(Schema):
    """What one result cost.

    Attributes:
        num_prompt_tokens: Tokens of the prompt.
        num_kept_tokens: Tokens of the completion.
        num_drafted_tokens: Tokens of all judged draws; kept tokens are among them.
        num_lookahead_tokens: Tokens read by the reward model behind the judged draws.
        num_surplus_tokens: All other tokens generated: those of parallel draws that were never
            looked at, because one before them was accepted, and those behind a sentence border or
            a stop string.
        num_surplus_rewards: Rewards computed for draws that were never looked at.
        num_reward_calls: Completions scored and looked at.
        num_reward_tokens: Tokens the reward model read for them; 0 for one without a tokenizer.
        num_attempts: Judged draws.
        num_repeated_draws: Those equal to an earlier one of their segment, token for token.
        num_similar_draws: Those that differ from an earlier one of their segment in one position of
            eight at most; the repeated ones are among them.
        num_accepted: Draws accepted by the test.
        num_forced: Segments kept without acceptance.
        num_ineligible: Draws with a non-finite or vetoed reward.
        num_reward_failures: Rewards that failed, and whose candidates were rejected for it.
        num_truncated_rewards: Rewards for which the prompt was cut to the reward model's context.
        duration_s: Wall time from start to end of the request.
    """

    num_prompt_tokens: int = 0
    num_kept_tokens: int = 0
    num_drafted_tokens: int = 0
    num_lookahead_tokens: int = 0
    num_surplus_tokens: int = 0
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

    @property
    def num_generated_tokens(self) -> int:
        """All tokens that the language model generated."""
        return self.num_drafted_tokens + self.num_lookahead_tokens + self.num_surplus_tokens

    @property
    def acceptance_rate(self) -> float:
        """Accepted draws over judged draws; nan when nothing was judged."""
        return self.num_accepted / self.num_attempts if self.num_attempts else float("nan")


class StarsResult(Schema):
    """The aligned answer to one prompt, with a full account of how it came about.

    Attributes:
        text: The answer; never contains the prompt, a stop string or half a character.
        token_ids: The completion's ids, those that ended it (end-of-text, stop string) included.
        finish_reason: "stop" (the model ended the answer, or a stop string did), "tool_calls" (it
            did so, and its message calls tools), "length", "rejected", "fallback", "cancelled",
            "deadline", "budget" or "error".
        reward: Reward of the final text; None if nothing was scored. With a lookahead, an answer
            that did not end by itself or at the token limit has that of text and lookahead.
        segments: The kept segments in order.
        abandoned_attempts: Draws of a last segment of which none was kept.
        usage: Tokens, calls and seconds.
        seed: The seed that reproduces this text together with `sample_index`.
        prompt_index: Position of the prompt in the call.
        sample_index: Which of the `n` samples of the prompt this is.
        schedule_hash: Hash of the threshold schedule.
        message: The answer to a conversation as a message: its content without reasoning and calls
            of tools, which it holds apart. None for prompts that are text to continue.
        schema_version: Version of this record's layout.
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
    schema_version: Literal[1] = 1


class SegmentEvent(Schema):
    """One step of a stream: a segment that was kept, or the end of the answer.

    Attributes:
        text: Text that became final; may be empty. Texts add up to the result's text.
        content: What this adds to the content of the answer's message, and
        reasoning: to its reasoning. Calls of tools are in neither. None for prompts that are text
            to continue.
        segment: The kept segment; None on a last event that only ends the answer.
        result: The whole result, on the last event of each answer.
        prompt_index: Position of the prompt in the call.
        sample_index: Which of the `n` samples of the prompt this is.
    """

    text: str
    content: str | None = None
    reasoning: str | None = None
    segment: Segment | None = None
    result: StarsResult | None = None
    prompt_index: int = 0
    sample_index: int = 0
