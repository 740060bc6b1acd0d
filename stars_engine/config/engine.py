"""Limits on the work of an engine."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stars_engine.schema import Schema


class EngineParams(Schema):
    """Limits on concurrent work and memory. They affect speed and memory, never the text."""

    max_rows: int = Field(
        default=128,
        ge=1,
        description="maximum number of candidates drafted in one step",
        examples=[128],
    )
    max_active: int = Field(
        default=256,
        ge=1,
        description="maximum number of running requests; each holds the key-value cache of its "
        "prefix. Requests that wait for the reward of a function are counted separately, for each "
        "reward",
        examples=[256],
    )
    max_prefix_tokens: int | None = Field(
        default=None,
        ge=1,
        description="maximum total tokens of running prompts and their answers (counted as "
        "max_tokens); further requests wait, and a request that exceeds the limit alone is refused",
        examples=[200_000],
    )
    max_cache_bytes: int | None = Field(
        default=None,
        ge=1,
        description="maximum memory for the language model's key-value cache, and the same again "
        "for each reward model that caches prefixes; further requests wait, and a request that "
        "exceeds the limit alone is refused",
        examples=[8 * 2**30],
    )
    max_waiting: int = Field(
        default=1024,
        ge=1,
        description="maximum number of queued requests; a larger call enters the queue in parts, "
        "and callers with nothing queued may exceed it by an eighth",
        examples=[1024],
    )
    draft_ahead: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="draft the next segment while rewards are computed, if drafts come from "
        "servers; 'auto' does so where it saves time",
    )
    max_answers: int = Field(
        default=131_072,
        ge=1,
        description="maximum number of answers of one call, over all its prompts; a larger call is "
        "refused",
        examples=[131_072],
    )
    max_n: int = Field(
        default=4096,
        ge=1,
        description="maximum number of answers per prompt, and of samples in `best_of_n`; a "
        "request with more is refused",
        examples=[4096],
    )
    max_prompt_chars: int = Field(
        default=4_000_000,
        ge=1,
        description="maximum number of characters of a prompt, and of a `reward_prompt` (a token "
        "id counts as one); a longer one is refused before it is tokenized",
        examples=[4_000_000],
    )
    max_grammar_chars: int = Field(
        default=1_000_000,
        ge=1,
        description="maximum number of characters of a grammar; a larger one is refused before it "
        "is compiled",
        examples=[1_000_000],
    )
    max_stop_strings: int = Field(
        default=1024,
        ge=0,
        description="maximum number of stop strings of a request, and of its stop token ids; "
        "the strings together may have a thousand times as many characters",
        examples=[1024],
    )
    on_full: Literal["wait", "raise"] = Field(
        default="wait", description="what a call does when the queue is full"
    )
    keep_alive_s: float = Field(
        default=300.0,
        ge=0,
        description="seconds that a shared engine stays loaded after its last handle is garbage-"
        "collected; inf keeps it until the process ends; closing the last handle unloads it at "
        "once",
        examples=[300.0],
    )
