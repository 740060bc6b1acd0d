"""Warn if the draws of a pilot, or what it predicts, are not what the caller may expect."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

from stars_engine.calibration.draw_limits import limits_in_words
from stars_engine.errors import StarsWarning
from stars_engine.schedules import CalibratedSchedule
from stars_engine.types import StarsResult

logger = logging.getLogger(__name__)

_FEW_PROMPTS = 50  # with fewer prompts, a missed target is expected


def warn_of_pilot(schedule: CalibratedSchedule, results: Sequence[StarsResult]) -> None:
    """Warn of drafts that could not be judged, and of a target that is not met."""
    ineligible = sum(result.usage.num_ineligible for result in results)
    attempts = sum(result.usage.num_attempts for result in results)
    if ineligible > attempts / 2:
        warnings.warn(
            f"{ineligible} of {attempts} pilot drafts had a non-finite reward or were vetoed; the "
            "thresholds depend on the others alone. Hint: check the reward, or lower its floor",
            StarsWarning,
            stacklevel=3,
        )
    predicted = schedule.predicted
    target = schedule.made_for["pilot"]["target"]
    stops = schedule.made_for["pilot"]["on_exhausted"] == "stop"
    for name, wanted in target.items():
        if name == "target_forced" and stops:
            continue  # none is forced; the target is the share of segments that end answers
        found = getattr(predicted, name.removeprefix("target_")).value
        if not abs(found - wanted) <= 0.25 * max(wanted, 0.2):  # nan too
            num_prompts = schedule.made_for["pilot"]["num_prompts"]
            reason = (
                "A reward with few distinct values leaves no threshold in between. Hint: use a "
                "finer reward, a beta above 0, or another target"
                if num_prompts >= _FEW_PROMPTS
                else f"{num_prompts} pilot prompts may be too few, or a reward with few distinct "
                "values leaves no threshold in between. Hint: use 100 prompts or more, or a finer "
                "reward"
            )
            logger.warning(
                "The target %s=%s is not met: %.3f is predicted. %s", name, wanted, found, reason
            )
    limited = limits_in_words(schedule)
    if limited is not None:
        logger.warning("%s", limited)
    if predicted is not None:
        logger.info("Calibrated %d stages: %s", len(schedule.stages), schedule.predicted)
