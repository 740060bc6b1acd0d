"""Immutable data types shared by all layers: prompts, rewards, segments and results."""

from stars_engine.types.prompts import Prompt, RenderedPrompt, TokenIds
from stars_engine.types.results import (
    Attempt,
    FinishReason,
    Segment,
    SegmentEvent,
    StarsResult,
    Usage,
    Verdict,
)
from stars_engine.types.rewards import RewardInput, RewardPrompt, Score

__all__ = [
    "Attempt",
    "FinishReason",
    "Prompt",
    "RenderedPrompt",
    "RewardInput",
    "RewardPrompt",
    "Score",
    "Segment",
    "SegmentEvent",
    "StarsResult",
    "TokenIds",
    "Usage",
    "Verdict",
]
