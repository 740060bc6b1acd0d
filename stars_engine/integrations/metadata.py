"""What adapters report beside the text: names, cache keys, token counts, and the whole account."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from itertools import count
from typing import Any
from uuid import uuid4
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
    """Return flat values that identify a configuration, for cache keys.

    Callables and models in memory are identified by numbers that no other process has, so that a
    cache on disk does not mix them. An object given by name keeps its name.
    """
    values: dict[str, Any] = {name: plain(getattr(settings, name)) for name in _OF_ROOT}
    sampling = settings.sampling
    values |= {"sampling": sampling} if sampling == "model" else plain(sampling)
    values |= plain(settings.align)
    return values


def short_identity(settings: StarsConfig) -> dict[str, Any]:
    """Return names of the models, settings that were given, and a digest of `identity`.

    This is for traces, which are stored for every call, and it is as unique as `identity`.
    """
    whole = identity(settings)
    given: dict[str, Any] = {}
    for part in (settings.sampling, settings.align):
        if isinstance(part, Schema):
            given |= {name: plain(getattr(part, name)) for name in part.model_fields_set}
    given |= {name: whole[name] for name in _OF_ROOT[2:] if name in settings.model_fields_set}
    if settings.sampling == "model":
        given["sampling"] = "model"
    if isinstance(given.get("schedule"), dict):
        given["schedule"] = given["schedule"]["kind"]
    return {
        "model": name_of_model(settings),
        "reward": _name_of_reward(settings.reward),
        **given,
        "digest": digest_of(whole),
    }


def digest_of(values: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that identify plain values."""
    written = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(written.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _name_of_reward(reward: Schema) -> str:
    """Return the name of a reward model, or else its kind and what it contains in memory."""
    for field in ("name_or_path", "guardrail"):
        name = getattr(reward, field, None)
        if isinstance(name, str):
            return name
    function = getattr(reward, "function", None)
    return str(getattr(reward, "kind", "")) if function is None else str(plain(function))


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


def account_of(result: StarsResult, *, trace: bool = False) -> dict[str, Any]:
    """Return metadata of an answer as plain values: finish reason, reward, seed and usage.

    With `trace`, it has the segments with all their attempts, which are far longer than the answer.
    Non-finite numbers, such as the threshold of `NoSchedule`, are None.
    """
    metadata: dict[str, Any] = {
        "finish_reason": result.finish_reason,
        "reward": result.reward,
        "seed": result.seed,
        "num_forced": result.usage.num_forced,
        "acceptance_rate": result.usage.acceptance_rate,
        "usage": usage_of(result),
    }
    if trace:
        metadata["segments"] = [segment.model_dump(mode="json") for segment in result.segments]
    account: dict[str, Any] = _finite(metadata)
    return account


def plain(value: object) -> Any:
    """Return values without config objects, with unique numbers for objects in memory."""
    if isinstance(value, Schema):
        return {name: plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, SecretStr):
        return MASK
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return f"{name} in memory, number {_number_of(value)} of process {_PROCESS}-{os.getpid()}"


_OF_ROOT = ("model", "reward", "prompt_format", "chat_template_kwargs")
_PROCESS = uuid4().hex[:12]  # a forked process has its own id
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
