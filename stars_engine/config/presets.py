"""Named presets of alignment settings."""

from __future__ import annotations

from typing import Any

from stars_engine.config.align import AlignParams
from stars_engine.config.preset_fields import PRESET_NAMES, preset_fields

__all__ = ["PRESET_NAMES", "preset"]


def preset(name: str, **changes: Any) -> AlignParams:
    """Return a preset of alignment settings; the same as `AlignParams(preset=name, ...)`.

    Args:
        name: "best": the settings that measurements recommend, short segments with calibrated
            thresholds at a budget of 2.7; "safe": the same, but an answer ends before a segment
            without an accepted draft; "guard": for a reward that says whether text is allowed (1)
            or not (0): segments that end with sentences and are kept if they are allowed, and
            answers that end before a segment for which no allowed draft was found; "paper":
            segments of 32 tokens with a linear ramp to `target` and up to 20 draws, as in STARS
            (arXiv 2511.03827).
        **changes: Other fields of `AlignParams`. "paper" requires `target`, and accepts
            `initial_weight`. "guard" accepts `threshold`, the lowest reward of allowed text.

    Raises:
        ConfigError: The preset is unknown, or a field is invalid.
    """
    return AlignParams(**preset_fields(name, changes))
