"""The dependencies of a calibration, and how a later use differs from them."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from math import isfinite
from pathlib import PurePath
from typing import Any

from stars_engine.calibration.weight_hashes import weight_hashes
from stars_engine.config import AlignParams, SamplingParams, StarsConfig, ValueReward
from stars_engine.config.models import Checkpoint
from stars_engine.config.servers import Server
from stars_engine.config.vllm import VLLMCheckpoint
from stars_engine.errors import StarsWarning
from stars_engine.schedules import CalibratedSchedule
from stars_engine.schema import Schema

# Fields of the proposal that change the distribution of drafts.
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
# Acceptance settings that change the rewards of drafts, or the number of draws.
_TEST = [
    "segment_len",
    "segment_end",
    "min_segment_len",
    "max_entropy",
    "lookahead",
    "beta",
    "max_attempts",
    "judge",
    "alternatives",
]
# Dependencies to compare; the pilot is not one of them.
_COMPARED = ("model", "reward", "prompt_format", "sampling", "align")
# Fields that affect access, where and how fast a model runs, or failures, but not its results.
_RUNTIME_FIELDS = (
    *("token", "device", "device_map", "batch_size", "max_concurrency", "timeout_s"),
    *("on_failure", "max_retries"),
    *("base_url", "api_key", "api_key_env", "ca_file", "connect_timeout_s", "http_retries"),
    *("max_connections", "dialect", "endpoint", "needs_seed", "tolerance"),
    *("tensor_parallel_size", "gpu_memory_utilization"),
)
_NAMES = ("name_or_path", "function", "revision")
_MAX_LENGTH_RATIO = 2  # warn above this multiple of the calibrated length


def dependencies(
    config: StarsConfig, align: AlignParams, sampling: SamplingParams
) -> dict[str, Any]:
    """Return the dependencies of thresholds for these settings, as plain values."""
    tested = _chosen(align, _TEST)
    # Defaults are omitted, since older files do not have these fields.
    if align.judge == "answer":
        del tested["judge"]
    if align.max_entropy is None:
        del tested["max_entropy"]
    tested["alternatives"] = [each for each in tested["alternatives"] if each["share"]]
    if not tested["alternatives"]:
        del tested["alternatives"]
    # Omitted if there are none, since older files do not have this field.
    kwargs = config.chat_template_kwargs
    return {
        "model": identity(config.model),
        "reward": identity(config.reward),
        "prompt_format": config.prompt_format,
        **({"chat_template_kwargs": kwargs} if kwargs else {}),
        "sampling": _chosen(sampling, _PROPOSAL),
        "align": tested,
    }


def identity(part: Schema) -> dict[str, Any]:
    """Return values that identify a model and are the same on every machine.

    Directories are identified by the last part of their path, objects in memory by type or name.
    """
    values: dict[str, Any] = {}
    for name, field in type(part).model_fields.items():
        value = getattr(part, name)
        is_default = value == field.get_default(call_default_factory=True)
        if is_default and name not in ("kind", "name_or_path"):
            continue  # so that explicit and implicit defaults are equal
        if name in _RUNTIME_FIELDS:
            continue
        values[name] = _plain(value)
    if isinstance(part, Checkpoint | Server | VLLMCheckpoint | ValueReward):
        for name in ("name_or_path", "tokenizer_name_or_path", "adapter_path"):
            path = values.get(name)
            if isinstance(path, str) and path.startswith((".", "~", "/")):
                values[name] = PurePath(path).name
    return values


def differences(made_for: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return descriptions of settings that differ from those of a calibration.

    Models are compared by their weights if both sides know them, otherwise by their names.
    """
    hashes, own = made_for.get("weights") or {}, now.get("weights") or {}
    known = [name for name in hashes if name in own]
    found = [
        f"the weights or code of the {name} differ" for name in known if hashes[name] != own[name]
    ]
    for name in _COMPARED:
        then, current = made_for.get(name), now.get(name)
        if then is None or then == current:
            continue
        if isinstance(then, Mapping) and isinstance(current, Mapping):
            keys = [key for key in {**then, **current} if then.get(key) != current.get(key)]
            if name in known:
                keys = [key for key in keys if key not in _NAMES]
            found += [
                f"{name}.{key} is {current.get(key)!r:.300}, not {then.get(key)!r:.300}"
                for key in keys
            ]
        else:
            found.append(f"{name} is {current!r:.300}, not {then!r:.300}")
    return found


def warn_of_mismatches(
    config: StarsConfig, settings: Iterable[tuple[AlignParams, SamplingParams | None]]
) -> None:
    """Check the settings of all prompts of a call, which mostly share them; see below."""
    checked: set[tuple[int, int]] = set()
    for align, sampling in settings:
        key = id(align), id(sampling)
        if key not in checked:
            checked.add(key)
            with suppress(RecursionError):  # an invalid grammar; reading the prompt reports it
                warn_of_mismatch(config, align, sampling)


def warn_of_mismatch(
    config: StarsConfig, align: AlignParams, sampling: SamplingParams | None
) -> None:
    """Warn if calibrated thresholds are used with settings other than those of the calibration.

    Also warn if answers may be much longer. Shorter answers use the same thresholds.
    """
    schedule = align.schedule
    if not isinstance(schedule, CalibratedSchedule) or not schedule.made_for:
        return
    now = dependencies(config, align, sampling or SamplingParams())
    if "weights" in schedule.made_for:
        now["weights"] = weight_hashes(config)
    if sampling is None:
        now["sampling"] = schedule.made_for.get("sampling")  # the model's default is unknown here
    found = differences(schedule.made_for, now)
    if found:
        warnings.warn(
            f"thresholds are used with settings other than those of their calibration: "
            f"{'; '.join(found)}. The thresholds may be far off. Hint: calibrate for these "
            "settings, or use AutoSchedule()",
            StarsWarning,
            stacklevel=5,
        )
    measured = schedule.max_tokens
    if sampling and measured and sampling.max_tokens > _MAX_LENGTH_RATIO * measured:
        # Without the request's own `max_tokens`, because warnings with equal text show once.
        warnings.warn(
            f"thresholds that were calibrated up to {measured} tokens are used for answers of more "
            f"than {_MAX_LENGTH_RATIO * measured}; later segments use the last stage. Hint: "
            "calibrate with a larger max_tokens, or use AutoSchedule()",
            StarsWarning,
            stacklevel=5,
        )


def hash_of(values: object) -> str:
    """Return 12 hexadecimal digits that change whenever a value does."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _chosen(part: Schema, names: Sequence[str]) -> dict[str, Any]:
    return {name: _plain(getattr(part, name)) for name in names if name in type(part).model_fields}


def _plain(value: Any) -> Any:
    """Return plain values that a file preserves."""
    if isinstance(value, Schema):
        return identity(value)
    if isinstance(value, Mapping):  # may have an entry for each token
        return {
            str(key): item if type(item) is float and isfinite(item) else _plain(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | int | bool):
        return value
    if isinstance(value, float):
        return value if abs(value) < float("inf") else str(value)
    # A function as it is named in a config file.
    named = hasattr(value, "__qualname__")
    return f"{value.__module__}:{value.__qualname__}" if named else type(value).__qualname__
