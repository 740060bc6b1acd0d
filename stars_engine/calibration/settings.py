"""What a calibration depends on, and how a later use differs from it."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from stars_engine.config import AlignParams, SamplingParams, StarsConfig
from stars_engine.config.models import Checkpoint
from stars_engine.errors import StarsWarning
from stars_engine.schedules import CalibratedSchedule
from stars_engine.schema import Schema

# Of the proposal: what changes the distribution that segments are drafted from.
_PROPOSAL = [
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "grammar",
    "min_tokens",
    "stop",
    "stop_token_ids",
]
# Of the test: what changes the rewards of drafts, or how many are drawn.
_TEST = [
    "segment_len",
    "segment_end",
    "min_segment_len",
    "lookahead",
    "beta",
    "max_attempts",
    "judge",
]
# How answers look, but not which pilots were asked.
_COMPARED = ("model", "reward", "prompt_format", "sampling", "align")
# By which right it is read, where and how fast it runs, and what is done if it fails.
_HOW_NOT_WHAT = (
    *("token", "device", "device_map", "batch_size", "max_concurrency", "timeout_s"),
    *("on_failure", "max_retries"),
)
_FAR = 2  # times the tokens it was made for, from where on a use is told of


def dependencies(
    config: StarsConfig, align: AlignParams, sampling: SamplingParams
) -> dict[str, Any]:
    """Return, as plain values, what thresholds for these settings depend on."""
    tested = _chosen(align, _TEST)
    if align.judge == "answer":
        del tested["judge"]  # files written before there was a choice say nothing of it
    return {
        "model": identity(config.model),
        "reward": identity(config.reward),
        "prompt_format": config.prompt_format,
        "sampling": _chosen(sampling, _PROPOSAL),
        "align": tested,
    }


def identity(part: Schema) -> dict[str, Any]:
    """Return what tells a model from others, the same on every machine.

    Of a directory the last part of its path counts. Objects in memory count by their type or name.
    """
    values: dict[str, Any] = {}
    for name, field in type(part).model_fields.items():
        value = getattr(part, name)
        is_default = value == field.get_default(call_default_factory=True)
        if is_default and name not in ("kind", "name_or_path"):
            continue  # whether or not a file says so
        if name in _HOW_NOT_WHAT:
            continue
        values[name] = _plain(value)
    if isinstance(part, Checkpoint):
        for name in ("name_or_path", "tokenizer_name_or_path", "adapter_path"):
            path = values.get(name)
            if isinstance(path, str) and path.startswith((".", "~", "/")):
                values[name] = PurePath(path).name
    return values


def differences(made_for: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say in which settings a use differs from what a calibration was made for."""
    found = []
    for name in _COMPARED:
        then, current = made_for.get(name), now.get(name)
        if then is None or then == current:
            continue
        if isinstance(then, Mapping) and isinstance(current, Mapping):
            keys = [key for key in {**then, **current} if then.get(key) != current.get(key)]
            found += [
                f"{name}.{key} is {current.get(key)!r}, not {then.get(key)!r}" for key in keys
            ]
        else:
            found.append(f"{name} is {current!r}, not {then!r}")
    return found


def warn_of_other_use(
    config: StarsConfig, align: AlignParams, sampling: SamplingParams | None
) -> None:
    """Warn where calibrated thresholds are used with other settings than they were made for.

    Also for answers far longer than they were made for; shorter ones get the same thresholds.
    """
    schedule = align.schedule
    if not isinstance(schedule, CalibratedSchedule) or not schedule.made_for:
        return
    now = dependencies(config, align, sampling or SamplingParams())
    if sampling is None:
        now["sampling"] = schedule.made_for.get("sampling")  # the model's own, not known here
    found = differences(schedule.made_for, now)
    if found:
        warnings.warn(
            f"thresholds are used with other settings than they were calibrated for: "
            f"{'; '.join(found)}. They may be far off. Cure: calibrate for these settings, or take "
            "AutoSchedule()",
            StarsWarning,
            stacklevel=4,
        )
    measured = schedule.max_tokens
    if sampling and measured and sampling.max_tokens > _FAR * measured:
        # Without the request's own number: warnings of equal text are shown once.
        warnings.warn(
            f"thresholds that were calibrated up to {measured} tokens are used for answers of more "
            f"than {_FAR * measured}: past their last stage they only hold. Cure: calibrate with a "
            "larger max_tokens, or take AutoSchedule()",
            StarsWarning,
            stacklevel=4,
        )


def hash_of(values: object) -> str:
    """Return 12 hexadecimal digits that change whenever a value does."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _chosen(part: Schema, names: Sequence[str]) -> dict[str, Any]:
    return {name: _plain(getattr(part, name)) for name in names if name in type(part).model_fields}


def _plain(value: Any) -> Any:
    """Return what a file gives back equal."""
    if isinstance(value, Schema):
        return identity(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | int | bool):
        return value
    if isinstance(value, float):
        return value if abs(value) < float("inf") else str(value)
    return getattr(value, "__qualname__", None) or type(value).__qualname__
