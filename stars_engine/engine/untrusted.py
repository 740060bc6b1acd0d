"""What a call does if the reward of unfinished text was found to say too little."""

from __future__ import annotations

from stars_engine.algorithm.baselines import PlainDecoding
from stars_engine.calibration.prefix_trust import untrusted_in_words
from stars_engine.errors import ConfigError, Problem
from stars_engine.runtime.request_group import RequestGroup
from stars_engine.schedules import CalibratedSchedule


def act_on_trust(group: RequestGroup) -> bool:
    """Sample Best-of-N for a call, or refuse it, if its schedule says so; see `on_untrusted`.

    Returns:
        Whether the call samples Best-of-N.

    Raises:
        ConfigError: A schedule raises, or prompts of one call differ in what to do.
    """
    chosen: set[int] = set()
    for request in group.prompts:
        schedule = request.align.schedule
        n = 0
        if isinstance(schedule, CalibratedSchedule) and schedule.is_untrusted:
            if schedule.on_untrusted == "raise":
                raise _problem(
                    f"{untrusted_in_words(schedule)}. Hint: use a longer segment_len or a reward "
                    "that judges unfinished text, or set on_untrusted='best_of_n' or 'warn'"
                )
            n = schedule.equivalent_n if schedule.on_untrusted == "best_of_n" else 0
        chosen.add(n)
    if chosen <= {0}:
        return False
    if len(chosen) > 1:
        raise _problem(
            "the schedules of one call ask for Best-of-N for some prompts only, or with different "
            "N. Hint: make one call for each schedule"
        )
    group.decoding, group.num_samples = PlainDecoding(), chosen.pop()
    return True


def _problem(message: str) -> ConfigError:
    return ConfigError("StarsEngine", [Problem("align.schedule", message)])
