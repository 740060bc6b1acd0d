"""What follows from the measurements of a trust report: a segment length, a budget, and advice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field

from stars_engine.calibration.trust import WORTHWHILE, SegmentTrust
from stars_engine.schema import Schema

_SHORT, _LONG = 2.7, 4.3  # budgets that did well with segments up to 16 tokens, and above


class Remedy(Schema):
    """An alternative way to cut and score segments, measured on plain answers."""

    name: str = Field(description="the change", examples=["segments end with sentences"])
    settings: dict[str, Any] = Field(description="the fields of AlignParams that make it")
    trust: SegmentTrust = Field(description="the measured effect")


def recommend(segments: Sequence[SegmentTrust], default: int) -> tuple[int, bool]:
    """Return the default length, or the best one if the default is not worthwhile."""
    best = max(segments, key=lambda s: np.nan_to_num(s.advantage.value, nan=-1.0))
    by_len = {s.segment_len: s for s in segments}
    usual = by_len.get(default, best)
    chosen = usual if usual.advantage.value >= WORTHWHILE else best
    return chosen.segment_len, bool(chosen.advantage.value >= WORTHWHILE)


def recommended_budget(segment_len: int) -> float:
    """Return the number of drafted tokens per kept token to start with."""
    return _SHORT if segment_len <= 16 else _LONG


def advise(
    segments: Sequence[SegmentTrust],
    remedies: Sequence[Remedy],
    length: int,
    shared: float,
    *,
    worthwhile: bool,
) -> list[str]:
    """Return advice, one line each.

    Args:
        segments: The measured segment lengths.
        remedies: The measured alternatives, after their baseline; may be empty.
        length: The recommended segment length.
        shared: Share of the final reward's variance that lies between prompts.
        worthwhile: Whether STARS is expected to outperform Best-of-N.
    """
    chosen = next(s for s in segments if s.segment_len == length)
    advantage = chosen.advantage
    lines = []
    if np.isnan(advantage.value):
        lines.append(
            "The reward of whole answers does not correlate with the outcome, or does not vary. "
            "Neither STARS nor Best-of-N can improve on it. Use another reward."
        )
    elif worthwhile:
        lines.append(
            f"Segments of {length} tokens: expected advantage {advantage.value:.2f} over Best-of-N "
            f"(95% interval {advantage.low:.2f} to {advantage.high:.2f}). STARS is worthwhile."
        )
        if advantage.low < WORTHWHILE:
            lines.append(
                "The interval includes values below 1.2; use more pilot prompts to decide."
            )
    else:
        lines.append(
            f"No segment length reaches an expected advantage of {WORTHWHILE} over Best-of-N "
            f"(best: {length} tokens, {advantage.value:.2f}). The reward of unfinished text hardly "
            "predicts the outcome. Use engine.best_of_n(...), a longer segment, or a reward model "
            "trained on prefixes."
        )
    begin = "Start with" if worthwhile else "To try STARS nevertheless, start with"
    lines.append(
        f"{begin} segment_len={length} and budget={recommended_budget(length)} (drafted tokens "
        "per kept token)."
    )
    if chosen.spearman_midway < 0.3:
        lines.append(
            "Midway through an answer, the rank correlation of reward and outcome among answers to "
            f"one prompt is only {chosen.spearman_midway:.2f}."
        )
    lines.append(
        f"{shared:.0%} of the final reward's variance lies between prompts, the rest between "
        "answers to one prompt"
        + (
            ": fixed thresholds would force hard prompts and accept nearly everything for easy "
            "ones. Use calibrated thresholds."
            if shared > 0.5
            else ", which is the part that a choice among answers can improve."
        )
    )
    if remedies:
        plain, *others = remedies
        best = max(others, key=lambda r: np.nan_to_num(r.trust.advantage.value, nan=-1.0))
        gain = best.trust.advantage.value - plain.trust.advantage.value
        if gain > 0.1:
            fields = ", ".join(f"{key}={value!r}" for key, value in best.settings.items())
            lines.append(
                f"{best.name}: advantage {best.trust.advantage.value:.2f} instead of "
                f"{plain.trust.advantage.value:.2f}; AlignParams({fields})."
            )
        else:
            lines.append(
                "Neither sentence borders nor a lookahead are expected to improve on this."
            )
    return lines
