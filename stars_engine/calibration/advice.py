"""What follows from the measurements of a trust report: a verdict, a segment length, and advice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from stars_engine.calibration.trust import SegmentTrust
from stars_engine.calibration.verify import Verification
from stars_engine.schedules import CurvePoint, Effort
from stars_engine.schedules.calibrated import WORTHWHILE
from stars_engine.schema import Schema

Verdict = Literal["worthwhile", "undecided", "not worthwhile"]

ENOUGH_PROMPTS = 50  # with fewer, intervals are too wide to decide much
_WEAK = 0.3  # rank correlation midway below which a prefix says little of the outcome
_FEW_FORCED = 0.02  # share of forced segments up to which a budget is recommended


class Remedy(Schema):
    """An alternative way to cut and score segments, measured on plain answers."""

    name: str = Field(description="the change", examples=["segments end with sentences"])
    settings: dict[str, Any] = Field(description="the fields of AlignParams that make it")
    trust: SegmentTrust = Field(description="the measured effect")


class LengthChoice(NamedTuple):
    """The recommended segment length.

    Attributes:
        segment: Its measurements.
        verdict: Whether STARS is expected to outperform Best-of-N with it.
        reason: Why this length, as text.
    """

    segment: SegmentTrust
    verdict: Verdict
    reason: str


def verdict_of(segment: SegmentTrust) -> Verdict:
    """Return the verdict that the whole interval of the advantage supports.

    If the rewards of unfinished text hardly rank the answers, the verdict is "undecided" at best,
    whatever the estimate, because the two measurements then contradict each other.
    """
    advantage = segment.advantage
    if np.isnan(advantage.value) or advantage.high < WORTHWHILE:
        return "not worthwhile"
    if advantage.low >= WORTHWHILE and segment.spearman_midway >= _WEAK:
        return "worthwhile"
    return "undecided"


def choose(segments: Sequence[SegmentTrust], default: int) -> LengthChoice:
    """Return the default length unless another is better beyond doubt.

    Args:
        segments: The measured lengths.
        default: The length that is used if none is set.
    """
    best = max(segments, key=lambda s: np.nan_to_num(s.advantage.low, nan=-np.inf))
    usual = next((s for s in segments if s.segment_len == default), None)
    if usual is None:
        reason = "it has the highest lower bound; the default was not measured"
        return LengthChoice(best, verdict_of(best), reason)
    if verdict_of(usual) == "worthwhile" and usual is not best:
        reason = (
            "it is the default and worthwhile, although the lower bound of "
            f"segment_len={best.segment_len}, {_said(best)}, is higher"
        )
        return LengthChoice(usual, "worthwhile", reason)
    if usual is best or not best.advantage.low > usual.advantage.value:
        reason = "it is the default, and no other length is better beyond its interval"
        return LengthChoice(usual, verdict_of(usual), reason)
    reason = f"its interval lies above the estimate of the default, {_said(usual)}"
    return LengthChoice(best, verdict_of(best), reason)


def affordable_budget(curve: Sequence[CurvePoint]) -> float | None:
    """Return the largest measured budget that forces few segments; None if none was measured."""
    budgets = [
        p.budget
        for p in curve
        if p.forced <= _FEW_FORCED and p.budget > 1 and np.isfinite(p.budget)
    ]
    return round(max(budgets), 1) if budgets else None


def advise(
    chosen: LengthChoice,
    remedies: Sequence[Remedy],
    *,
    shared: float,
    num_prompts: int,
    budget: float | None,
    calibrated_len: int | None = None,
) -> list[str]:
    """Return advice, one line each.

    Args:
        chosen: The recommended segment length.
        remedies: The measured alternatives, after their baseline; may be empty.
        shared: Share of the final reward's variance that lies between prompts.
        num_prompts: Number of pilot prompts.
        budget: See `affordable_budget`.
        calibrated_len: Segment length of the reported calibration; None without one.
    """
    lines = [_verdict_line(chosen)]
    chosen_len = chosen.segment.segment_len
    if calibrated_len is not None and calibrated_len != chosen_len:
        lines.append(
            f"The calibration has segments of {calibrated_len} tokens, and this verdict is not "
            f"about it. Calibrate with segment_len={chosen_len}, or judge it by its own row."
        )
    if num_prompts < ENOUGH_PROMPTS:
        lines.append(
            f"Only {num_prompts} pilot prompts: the intervals are wide. Use {ENOUGH_PROMPTS} or "
            "more, similar to those of later use."
        )
    if not np.isnan(chosen.segment.advantage.value):
        begin = "Use" if chosen.verdict == "worthwhile" else "To try STARS nevertheless, use"
        cost = (
            ""
            if budget is None
            else (
                f" A budget of up to {budget} drafted tokens per kept token forces at most "
                f"{_FEW_FORCED:.0%} of the segments, by the table of costs."
            )
        )
        lines.append(f"{begin} segment_len={chosen_len}: {chosen.reason}.{cost}")
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
        lines.append(_remedy_line(remedies, chosen.segment))
    return lines


def verification_advice(verification: Verification) -> list[str]:
    """Return a line for each prediction that the check on other prompts contradicts."""
    if verification.predicted is None:
        return []
    lines = []
    for name in Effort.model_fields:
        expected, seen = getattr(verification.predicted, name), getattr(verification.observed, name)
        if expected is not None and seen is not None and not expected.holds(seen.value):
            lines.append(
                f"The calibration failed its check: {name} is {seen.value:.3f} on "
                f"{verification.num_prompts} other prompts, outside the predicted "
                f"{expected.shown()}. Calibrate on prompts like those of later use, and on more "
                "of them."
            )
    return lines


def _verdict_line(chosen: LengthChoice) -> str:
    segment, advantage = chosen.segment, chosen.segment.advantage
    if np.isnan(advantage.value):
        return (
            "Not worthwhile: the reward of whole answers does not correlate with the outcome, or "
            "does not vary. Neither STARS nor Best-of-N can improve on it. Use another reward."
        )
    said = f"{_said(segment)} over Best-of-N with segments of {segment.segment_len} tokens"
    midway = f"the rank correlation of reward and outcome midway is {segment.spearman_midway:.2f}"
    if chosen.verdict == "worthwhile":
        return f"Worthwhile: STARS is expected to have an advantage of {said}; {midway}."
    if chosen.verdict == "not worthwhile":
        return (
            f"Not worthwhile: the expected advantage is {said}, below {WORTHWHILE}. The reward of "
            "unfinished text hardly predicts the outcome. Use engine.best_of_n(...), a longer "
            "segment, or a reward model trained on prefixes."
        )
    if advantage.low >= WORTHWHILE:
        return (
            f"Undecided: the expected advantage is {said}, but {midway}, so that unfinished text "
            "hardly ranks the answers. Compare both on your prompts: stars compare."
        )
    return (
        f"Undecided: the expected advantage is {said}, and its interval includes {WORTHWHILE}, "
        f"below which Best-of-N does as well; {midway}. Use more pilot prompts, or compare both: "
        "stars compare."
    )


def _said(segment: SegmentTrust) -> str:
    a = segment.advantage
    return f"{a.value:.2f} [{a.low:.2f}, {a.high:.2f}]"


def _remedy_line(remedies: Sequence[Remedy], chosen: SegmentTrust) -> str:
    """Return what the best alternative promises, if its interval says so.

    It must be better than its baseline, and than the recommended segments.
    """
    plain, *others = remedies
    best = max(others, key=lambda r: np.nan_to_num(r.trust.advantage.low, nan=-np.inf))
    usual = max(plain.trust.advantage.value, np.nan_to_num(chosen.advantage.value, nan=-np.inf))
    if not best.trust.advantage.low > usual:
        return "Neither sentence borders nor a lookahead are expected to improve on this."
    fields = ", ".join(f"{key}={value!r}" for key, value in best.settings.items())
    return (
        f"{best.name}: advantage {_said(best.trust)} instead of {usual:.2f}; AlignParams({fields})."
    )
