"""Named presets of alignment settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stars_engine.config.align import AlignParams
from stars_engine.errors import ConfigError, Problem
from stars_engine.schedules import AutoSchedule


def preset(name: str, **changes: Any) -> AlignParams:
    """Return a preset of alignment settings.

    Args:
        name: "best": the settings that measurements recommend, short segments with calibrated
            thresholds at a budget of 2.7; "safe": the same, but an answer ends before a segment
            without an accepted draft; "paper": segments of 32 tokens with a linear ramp to
            `target` and up to 20 draws, as in STARS (arXiv 2511.03827).
        **changes: Other fields of `AlignParams`. "paper" requires `target`, and accepts
            `initial_weight`.

    Raises:
        ConfigError: The preset is unknown, or a field is invalid.
    """
    if name not in _PRESETS:
        message = (
            f"unknown preset {name!r}; expected one of {', '.join(PRESET_NAMES)}. Hint: use 'best'"
        )
        raise ConfigError("preset", [Problem("name", message)])
    return _PRESETS[name](changes)


def _best(changes: Mapping[str, Any]) -> AlignParams:
    return AlignParams(**{"schedule": AutoSchedule(), **changes})


def _safe(changes: Mapping[str, Any]) -> AlignParams:
    return _best({"on_exhausted": "stop", **changes})


def _paper(changes: Mapping[str, Any]) -> AlignParams:
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
    return AlignParams(**{"segment_len": 32, "max_attempts": 20, **values})


_PRESETS: dict[str, Callable[[Mapping[str, Any]], AlignParams]] = {
    "best": _best,
    "safe": _safe,
    "paper": _paper,
}
PRESET_NAMES = tuple(_PRESETS)
