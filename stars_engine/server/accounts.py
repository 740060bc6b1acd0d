"""what clients get beside the text: finish reasons, refusals, usage, rewards and segments."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

from openai.types import CompletionUsage

from stars_engine.integrations import num_rejected_tokens
from stars_engine.types import Attempt, Segment, StarsResult

ChoiceReason = Literal["stop", "length", "tool_calls", "content_filter"]

_REASONS: dict[str, ChoiceReason] = {
    "stop": "stop",
    "tool_calls": "tool_calls",
    "length": "length",
    "deadline": "length",
    "budget": "length",
    "rejected": "content_filter",
    "fallback": "content_filter",
}


def finish_reason_of(result: StarsResult) -> ChoiceReason:
    """Return OpenAI's finish reason of an answer; the precise one is in its account."""
    return _REASONS.get(result.finish_reason, "stop")


def refusal_of(result: StarsResult) -> str | None:
    """Return why an answer was refused, or None. It does not quote what was rejected."""
    if result.finish_reason == "fallback":
        return result.segments[-1].text
    if result.finish_reason != "rejected":
        return None
    return f"None of {len(result.abandoned_attempts)} drafts of the next segment was accepted."


def counts_of(results: Iterable[StarsResult]) -> dict[str, int]:
    """Return the tokens of the answers to one request; each prompt counts once."""
    counts: Counter[str] = Counter(
        dict.fromkeys(("prompt", "completion", "drafted", "rejected", "surplus", "lookahead"), 0)
    )
    prompts = set()
    for result in results:
        usage = result.usage
        if result.prompt_index not in prompts:
            prompts.add(result.prompt_index)
            counts["prompt"] += usage.num_prompt_tokens
        counts["completion"] += usage.num_kept_tokens
        counts["drafted"] += usage.num_drafted_tokens
        counts["rejected"] += num_rejected_tokens(result)
        counts["surplus"] += usage.num_surplus_tokens
        counts["lookahead"] += usage.num_lookahead_tokens
    return dict(counts)


def usage_of(results: Iterable[StarsResult]) -> CompletionUsage:
    """Return the usage of a request; its details count drafted and rejected tokens."""
    counts = counts_of(results)
    details = {
        f"{name}_tokens": counts[name] for name in ("drafted", "rejected", "surplus", "lookahead")
    }
    return CompletionUsage.model_validate(
        {
            "prompt_tokens": counts["prompt"],
            "completion_tokens": counts["completion"],
            "total_tokens": counts["prompt"] + counts["completion"],
            "completion_tokens_details": details,
        }
    )


def account_of(result: StarsResult, *, segments: bool, is_stream: bool = False) -> dict[str, Any]:
    """Return what the key `stars` of a choice holds.

    Args:
        result: The answer.
        segments: Whether to include its segments. Of rejected drafts, rewards are included, and
            texts if the engine was asked to keep them.
        is_stream: Whether the segments were sent before, but for drafts that no segment followed.
    """
    account: dict[str, Any] = {
        "finish_reason": result.finish_reason,
        "reward": _finite(result.reward),
        "seed": result.seed,
        "acceptance_rate": _finite(result.usage.acceptance_rate),
        "num_forced": result.usage.num_forced,
    }
    if result.message is not None and result.message.invalid_tool_calls:
        account["invalid_tool_calls"] = [
            call.model_dump() for call in result.message.invalid_tool_calls
        ]
    if segments:
        if not is_stream:
            account["segments"] = [segment_of(segment) for segment in result.segments]
        account["abandoned_attempts"] = [_attempt_of(item) for item in result.abandoned_attempts]
    return account


def segment_of(segment: Segment) -> dict[str, Any]:
    """Return one segment with its attempts as plain values, without infinite numbers."""
    return {
        "text": segment.text,
        "num_tokens": len(segment.token_ids),
        "reward": _finite(segment.reward),
        "threshold": _finite(segment.threshold),
        "acceptance_prob": _finite(segment.acceptance_prob),
        "verdict": segment.verdict,
        "attempts": [_attempt_of(attempt) for attempt in segment.attempts],
    }


def _attempt_of(attempt: Attempt) -> dict[str, Any]:
    values: dict[str, Any] = {
        "reward": _finite(attempt.reward),
        "threshold": _finite(attempt.threshold),
        "acceptance_prob": _finite(attempt.acceptance_prob),
        "verdict": attempt.verdict,
        "num_tokens": attempt.num_tokens,
    }
    if attempt.parts is not None:
        values["parts"] = {
            name: None if value is None else _finite(value) for name, value in attempt.parts.items()
        }
    if attempt.text is not None:
        values["text"] = attempt.text
    return values


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
