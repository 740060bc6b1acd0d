"""What adapters report beside the text: names, cache keys, token counts, and the whole account."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary

from pydantic import SecretStr

from stars_engine.config import StarsConfig
from stars_engine.redaction import MASK
from stars_engine.schema import Schema
from stars_engine.types import StarsResult


def name_of_model(settings: StarsConfig) -> str:
    """Return the name of the language model for traces and metadata."""
    return settings.model.shown_name


def identity(settings: StarsConfig) -> dict[str, Any]:
    """Return flat values that identify a configuration, for cache keys and traces.

    Callables and models in memory are identified by numbers that are unique in this process.
    """
    values: dict[str, Any] = {}
    for name in ("model", "reward"):
        values[name] = _plain(getattr(settings, name))
    values["prompt_format"] = settings.prompt_format
    values["chat_template_kwargs"] = settings.chat_template_kwargs
    sampling = settings.sampling
    values |= {"sampling": sampling} if sampling == "model" else sampling.model_dump(mode="json")
    return values | settings.align.model_dump(mode="json")


def usage_of(result: StarsResult) -> dict[str, int]:
    """Return token counts under the names of most frameworks, and the cost of alignment."""
    usage = result.usage
    return {
        "prompt_tokens": usage.num_prompt_tokens,
        "completion_tokens": usage.num_kept_tokens,
        "total_tokens": usage.num_prompt_tokens + usage.num_kept_tokens,
        "drafted_tokens": usage.num_drafted_tokens,
        "lookahead_tokens": usage.num_lookahead_tokens,
        "surplus_tokens": usage.num_surplus_tokens,
        "reward_calls": usage.num_reward_calls,
    }


def num_rejected_tokens(result: StarsResult) -> int:
    """Return the number of tokens in rejected drafts."""
    attempts = [attempt for segment in result.segments for attempt in segment.attempts]
    attempts += result.abandoned_attempts
    return sum(attempt.num_tokens for attempt in attempts if attempt.verdict == "rejected")


def account_of(result: StarsResult) -> dict[str, Any]:
    """Return metadata of an answer as plain values: finish reason, reward, usage, segments.

    Non-finite numbers, such as the threshold of `NoSchedule`, are None.
    """
    metadata = {
        "finish_reason": result.finish_reason,
        "reward": result.reward,
        "seed": result.seed,
        "num_forced": result.usage.num_forced,
        "acceptance_rate": result.usage.acceptance_rate,
        "usage": usage_of(result),
        "segments": [segment.model_dump(mode="json") for segment in result.segments],
    }
    account: dict[str, Any] = _finite(metadata)
    return account


def _plain(value: object) -> Any:
    """Return a config object as plain values, with unique numbers for live objects."""
    if isinstance(value, Schema):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, SecretStr):
        return MASK
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return f"{name} in memory, number {_number_of(value)}"


_numbers: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
_kept_alive: dict[int, tuple[Any, int]] = {}  # objects without weak references
_next_number = count(1)


def _number_of(value: object) -> int:
    """Return a number that is unique to an object for the lifetime of the process."""
    try:
        if value not in _numbers:
            _numbers[value] = next(_next_number)
        return _numbers[value]
    except TypeError:  # no weak reference or hash
        if id(value) not in _kept_alive:
            _kept_alive[id(value)] = (value, next(_next_number))
        return _kept_alive[id(value)][1]


def _finite(value: Any) -> Any:
    """Return plain values with None for non-finite numbers, which strict JSON does not allow."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
