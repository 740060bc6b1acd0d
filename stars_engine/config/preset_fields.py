"""The fields of presets of alignment settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stars_engine.errors import ConfigError, Problem
from stars_engine.schedules import AutoSchedule

ALLOWED_FROM = 0.5  # between 0, refused, and 1, allowed
_SENTENCE_LEN, _SHORTEST = 48, 4  # tokens of a sentence at most, and at least


def preset_fields(name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a preset with changes; see `presets.preset`.

    Raises:
        ConfigError: The preset is unknown, or a field that it requires is missing.
    """
    if name not in _PRESETS:
        message = (
            f"unknown preset {name!r}; expected one of {', '.join(PRESET_NAMES)}. Hint: use 'best'"
        )
        raise ConfigError("preset", [Problem("name", message)])
    return _PRESETS[name](changes)


def _best(changes: Mapping[str, Any]) -> dict[str, Any]:
    return {"schedule": AutoSchedule(), **changes}


def _safe(changes: Mapping[str, Any]) -> dict[str, Any]:
    return _best({"on_exhausted": "stop", **changes})


def _guard(changes: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(changes)
    threshold = values.pop("threshold", ALLOWED_FROM)
    if values.get("fallback_text") is not None:
        values.setdefault("on_exhausted", "fallback")
    if values.setdefault("segment_end", "sentence") == "sentence":
        longest = values.setdefault("segment_len", _SENTENCE_LEN)
        if not (isinstance(longest, int) and longest < _SHORTEST):
            values.setdefault("min_segment_len", _SHORTEST)
    return {
        "schedule": {"kind": "constant", "value": threshold},
        "on_exhausted": "stop",
        "max_attempts": 10,
        **values,
    }


def _paper(changes: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(changes)
    if "schedule" not in values:
        if "target" not in values:
            message = (
                "is required: the target reward r* depends on the reward model, and the paper "
                "gives no value. Hint: use preset('paper', target=...), or the preset 'best', "
                "which calibrates its thresholds"
            )
            raise ConfigError("preset 'paper'", [Problem("target", message)])
        ramp = {k: values.pop(k) for k in ("target", "initial", "initial_weight") if k in values}
        values["schedule"] = {"kind": "linear", **ramp}
    return {"segment_len": 32, "max_attempts": 20, **values}


_PRESETS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "best": _best,
    "safe": _safe,
    "guard": _guard,
    "paper": _paper,
}
PRESET_NAMES = tuple(_PRESETS)
