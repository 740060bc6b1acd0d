"""The settings of adapters by name. Written by `tools/adapter_fields.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, Field, SkipValidation
from pydantic.json_schema import SkipJsonSchema

from stars_engine.config import Alternative, Grammar, ModelConfig, RewardConfig, StarsConfig
from stars_engine.schedules import Schedule


class SettingFields(BaseModel):
    """The settings of `StarsConfig` and its parts. `EngineFields` validates them."""

    model: SkipValidation[ModelConfig | str | dict[str, Any]] = Field(
        default_factory=lambda: StarsConfig().model,
        description=(
            "the language model; a name alone means TransformersModel(name_or_path=name), and "
            "fields with base_url mean OpenAIServerModel"
        ),
    )
    reward: SkipValidation[
        RewardConfig | str | SkipJsonSchema[Callable[..., Any]] | dict[str, Any]
    ] = Field(
        default_factory=lambda: StarsConfig().reward,
        description=(
            "the reward model; a name alone means ClassifierReward, a callable or "
            "'package.module:name' FunctionReward"
        ),
    )
    prompt_format: SkipValidation[Literal["auto", "chat", "raw", "rendered"]] = Field(
        default="auto",
        description=(
            "how to read a string prompt: 'chat' as a user message, 'raw' as text to "
            "continue, 'auto' as a user message if the model has a chat template, 'rendered' "
            "as text of a chat template, whose control tokens are parsed (never for untrusted "
            "text)"
        ),
    )
    chat_template_kwargs: SkipValidation[dict[str, Any]] = Field(
        default_factory=dict,
        description=(
            "variables for the language model's chat template, a JSON object; a Chat can "
            "override them"
        ),
    )
    max_tokens: SkipValidation[int] = Field(
        default=128, description="maximum number of completion tokens"
    )
    temperature: SkipValidation[float] = Field(
        default=0.8, description="temperature of the language model; 0 is greedy decoding"
    )
    top_k: SkipValidation[int | None] = Field(
        default=40, description="keep the k most likely tokens; None keeps all"
    )
    top_p: SkipValidation[float] = Field(
        default=1.0,
        description="keep the most likely tokens whose total probability reaches this value",
    )
    min_p: SkipValidation[float] = Field(
        default=0.0,
        description="drop tokens below this fraction of the most likely token's probability",
    )
    repetition_penalty: SkipValidation[float] = Field(
        default=1.0,
        description=(
            "divides positive logits, and multiplies negative logits, of tokens in the prompt "
            "or completion"
        ),
    )
    presence_penalty: SkipValidation[float] = Field(
        default=0.0, description="subtracted from the logits of tokens in the completion"
    )
    frequency_penalty: SkipValidation[float] = Field(
        default=0.0,
        description="subtracted from a token's logit for each occurrence in the completion",
    )
    logit_bias: SkipValidation[dict[int, float] | None] = Field(
        default=None, description="added to logits; keys are token ids"
    )
    grammar: SkipValidation[Grammar | dict[str, Any] | SkipJsonSchema[type[BaseModel]] | None] = (
        Field(
            default=None,
            description=(
                "constrains the answer to a JSON schema, a regular expression, a list of choices "
                "or a context-free grammar; other tokens are never drafted"
            ),
        )
    )
    min_tokens: SkipValidation[int] = Field(
        default=0,
        description=(
            "minimum number of tokens before an end-of-text token or a stop token may end the "
            "answer; stop strings count if they end after them"
        ),
    )
    stop: SkipValidation[tuple[str, ...] | list[str] | str] = Field(
        default=(), description="strings that end the answer and are not part of it"
    )
    stop_token_ids: SkipValidation[tuple[int, ...] | list[int]] = Field(
        default=(), description="token ids that end the answer, in addition to the model's own"
    )
    seed: SkipValidation[int | None] = Field(
        default=None,
        description=(
            "the same seed gives the same text; None draws a new seed, which the result reports"
        ),
    )
    n: SkipValidation[int] = Field(default=1, description="answers per prompt")
    on_overflow: SkipValidation[Literal["raise", "clamp"]] = Field(
        default="raise",
        description="if prompt and max_tokens exceed the context: raise, or lower max_tokens",
    )
    schedule: SkipValidation[Schedule | dict[str, Any] | None] = Field(
        default=None,
        description=(
            "thresholds; None uses the shipped thresholds for the embedded pair, and "
            "AutoSchedule() for other models"
        ),
    )
    beta: SkipValidation[float] = Field(
        default=0.0,
        description=(
            "acceptance softness in reward units: a = min(1, exp((r - threshold) / beta)); 0 "
            "accepts iff r >= threshold; not the LM's temperature"
        ),
    )
    segment_len: SkipValidation[int] = Field(
        default=32, description="tokens that are drafted and scored together"
    )
    segment_end: SkipValidation[Literal["length", "sentence", "entropy"]] = Field(
        default="length",
        description=(
            "where a segment ends: after segment_len tokens, or earlier at the first end of a "
            "sentence, or before the first token that the model is uncertain about"
        ),
    )
    min_segment_len: SkipValidation[int | None] = Field(
        default=None,
        description=(
            "minimum tokens before a sentence or an uncertain token may end the segment, at "
            "most segment_len; not with segment_end='length'; None means a quarter of "
            "segment_len"
        ),
    )
    max_entropy: SkipValidation[float | None] = Field(
        default=None,
        description=(
            "entropy of the model's next token from which a segment ends before it, in nats, "
            "at temperature 1 and without filters; required with segment_end='entropy'"
        ),
    )
    lookahead: SkipValidation[int] = Field(
        default=0,
        description=(
            "tokens of greedy continuation that the reward model reads after each candidate; "
            "they are never kept; only with segment_end='length'"
        ),
    )
    judge: SkipValidation[Literal["answer", "all"]] = Field(
        default="answer",
        description=(
            "'answer': reasoning, tool calls and grammar-constrained JSON are unscored spans, "
            "which are kept without a test and which the reward model does not read; 'all': "
            "everything is scored"
        ),
    )
    max_attempts: SkipValidation[int] = Field(
        default=20, description="maximum draws per segment, including the first"
    )
    on_exhausted: SkipValidation[Literal["best", "last", "stop", "raise", "fallback"]] = Field(
        default="best",
        description=(
            "if no draw is accepted: keep the best or last draw, end before this segment, "
            "raise AlignmentError, or end with fallback_text"
        ),
    )
    fallback_text: SkipValidation[str | None] = Field(
        default=None,
        description="text appended to the accepted segments if on_exhausted is 'fallback'",
    )
    terminal: SkipValidation[Literal["schedule", "target"] | float] = Field(
        default="schedule",
        description=(
            "threshold for a candidate that ends the answer: that of the schedule, the "
            "schedule's target, or a number"
        ),
    )
    max_drafted_tokens: SkipValidation[int | None] = Field(
        default=None,
        description="maximum drafted tokens; the answer then ends with the accepted segments",
    )
    deadline_s: SkipValidation[float | None] = Field(
        default=None,
        description=(
            "seconds; the answer then ends with the accepted segments: after the current "
            "step, or a tenth of a second later if the step lasts longer"
        ),
    )
    num_candidates: SkipValidation[int | Literal["auto"]] = Field(
        default="auto",
        description=(
            "candidates drafted per step; 'auto' chooses the fastest number from the "
            "acceptance so far and the measured cost of steps, at most 4 if the reward is a "
            "function; affects speed, never the text"
        ),
    )
    keep_rejected_text: SkipValidation[bool] = Field(
        default=False, description="record the text of rejected draws in the result"
    )
    alternatives: SkipValidation[tuple[Alternative, ...] | list[Alternative | dict[str, Any]]] = (
        Field(
            default=(),
            description=(
                "other system messages, prefaces or openings from which some draws are proposed; "
                "shares add up to at most 1, and the plain prompt has the rest"
            ),
        )
    )
    max_rows: SkipValidation[int] = Field(
        default=128, description="maximum number of candidates drafted in one step"
    )
    max_active: SkipValidation[int] = Field(
        default=256,
        description=(
            "maximum number of running requests; each holds the key-value cache of its "
            "prefix. Requests that wait for the reward of a function are counted separately, "
            "for each reward"
        ),
    )
    max_prefix_tokens: SkipValidation[int | None] = Field(
        default=None,
        description=(
            "maximum total tokens of running prompts and their answers (counted as "
            "max_tokens); further requests wait, and a request that exceeds the limit alone "
            "is refused"
        ),
    )
    max_cache_bytes: SkipValidation[int | None] = Field(
        default=None,
        description=(
            "maximum memory for the language model's key-value cache, and the same again for "
            "each reward model that caches prefixes; further requests wait, and a request "
            "that exceeds the limit alone is refused"
        ),
    )
    max_waiting: SkipValidation[int] = Field(
        default=1024,
        description=(
            "maximum number of queued requests; a larger call enters the queue in parts, and "
            "callers with nothing queued may exceed it by an eighth"
        ),
    )
    draft_ahead: SkipValidation[Literal["auto", "always", "never"]] = Field(
        default="auto",
        description=(
            "draft the next segment while rewards are computed, if drafts come from servers; "
            "'auto' does so where it saves time"
        ),
    )
    max_answers: SkipValidation[int] = Field(
        default=131072,
        description=(
            "maximum number of answers of one call, over all its prompts; a larger call is refused"
        ),
    )
    max_n: SkipValidation[int] = Field(
        default=4096,
        description=(
            "maximum number of answers per prompt, and of samples in `best_of_n`; a request "
            "with more is refused"
        ),
    )
    max_prompt_chars: SkipValidation[int] = Field(
        default=4000000,
        description=(
            "maximum number of characters of a prompt, and of a `reward_prompt` (a token id "
            "counts as one); a longer one is refused before it is tokenized"
        ),
    )
    max_grammar_chars: SkipValidation[int] = Field(
        default=1000000,
        description=(
            "maximum number of characters of a grammar; a larger one is refused before it is "
            "compiled"
        ),
    )
    max_stop_strings: SkipValidation[int] = Field(
        default=1024,
        description=(
            "maximum number of stop strings of a request, and of its stop token ids; the "
            "strings together may have a thousand times as many characters"
        ),
    )
    on_full: SkipValidation[Literal["wait", "raise"]] = Field(
        default="wait", description="what a call does when the queue is full"
    )
    keep_alive_s: SkipValidation[float] = Field(
        default=300.0,
        description=(
            "seconds that a shared engine stays loaded after its last handle is "
            "garbage-collected; inf keeps it until the process ends; closing the last handle "
            "unloads it at once"
        ),
    )
