"""Bounds of an engine's work."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stars_engine.schema import Schema


class EngineParams(Schema):
    """How much an engine does at once, and who waits. They change speed and memory, never text."""

    max_rows: int = Field(
        default=128,
        ge=1,
        description="candidates drafted together in one round at most",
        examples=[128],
    )
    max_active: int = Field(
        default=256,
        ge=1,
        description="requests in progress at most; each holds its prefix's key-value cache. Those "
        "that wait for a function's reward count apart, for each reward",
        examples=[256],
    )
    max_prefix_tokens: int | None = Field(
        default=None,
        ge=1,
        description="tokens that prompts in progress and their answers (by their max_tokens) may "
        "come to together; requests beyond wait, and one that exceeds it alone is refused",
        examples=[200_000],
    )
    max_cache_bytes: int | None = Field(
        default=None,
        ge=1,
        description="memory for keys and values of the language model's texts, in progress or kept "
        "for later, and as much again for each reward model that keeps what it has read; requests "
        "beyond wait, and one that exceeds it alone is refused",
        examples=[8 * 2**30],
    )
    max_waiting: int = Field(
        default=1024,
        ge=1,
        description="requests in the queue at most; a larger call comes in piece by piece",
        examples=[1024],
    )
    on_full: Literal["wait", "raise"] = Field(
        default="wait", description="what a call does when the queue is full"
    )
    keep_alive_s: float = Field(
        default=300.0,
        ge=0,
        description="seconds that a shared engine stays loaded when its last handle was forgotten, "
        "inf for as long as the process; closing the last handle unloads it at once",
        examples=[300.0],
    )
