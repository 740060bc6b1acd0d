"""Defaults of conversations, whose answers are longer than continued text, and their cut calls."""

from __future__ import annotations

import warnings

from stars_engine.config import SamplingParams, StarsConfig
from stars_engine.errors import StarsWarning
from stars_engine.schedules import AutoSchedule, CalibratedSchedule
from stars_engine.types import StarsResult

MAX_ANSWER_TOKENS = 1_024
_MAX_CALIBRATED = 512  # a calibration drafts answers of this length
_MAX_LENGTH_RATIO = 2  # of an answer to those that thresholds were calibrated with
_BOUNDS = {"length": "max_tokens", "deadline": "deadline_s", "budget": "max_drafted_tokens"}


def chat_sampling(sampling: SamplingParams, settings: StarsConfig) -> SamplingParams:
    """Return sampling parameters for a conversation.

    If `max_tokens` was not set, it is what is left of the context, up to 1,024. Thresholds bound it
    too: 512 if the engine calibrates them, and otherwise twice the length of their calibration. The
    embedded pair continues text, and keeps its limit.

    Args:
        sampling: The parameters of a call.
        settings: The config of the call.
    """
    if "max_tokens" in sampling.model_fields_set or settings.uses_embedded_pair:
        return sampling
    schedule, limit = settings.with_thresholds().schedule, MAX_ANSWER_TOKENS
    if isinstance(schedule, AutoSchedule):
        limit = _MAX_CALIBRATED
    if isinstance(schedule, CalibratedSchedule) and schedule.max_tokens is not None:
        limit = min(limit, _MAX_LENGTH_RATIO * schedule.max_tokens)
    changes = {"max_tokens": max(limit, sampling.max_tokens, sampling.min_tokens)}
    if "on_overflow" in sampling.model_fields_set:
        return sampling.replace(**changes)
    return sampling.replace(**changes, on_overflow="clamp")


def warn_of_cut_calls(result: StarsResult) -> StarsResult:
    """Warn if a limit cut off a tool call; return the result."""
    message, bound = result.message, _BOUNDS.get(result.finish_reason)
    if message is not None and message.invalid_tool_calls and bound is not None:
        warnings.warn(
            f"a tool call was cut off by {bound} after {result.usage.num_kept_tokens} tokens; it "
            f"is in invalid_tool_calls. Hint: raise {bound}, or bound the arguments in the schema "
            "(maxLength, maxItems)",
            StarsWarning,
            stacklevel=4,
        )
    return result
