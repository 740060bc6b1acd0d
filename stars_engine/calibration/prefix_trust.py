"""Measure, during a calibration, how far the reward of unfinished text can be trusted."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from stars_engine.calibration.host import Host, RewardPrompts
from stars_engine.calibration.plain_answers import plain_answers
from stars_engine.calibration.trust import segment_trust
from stars_engine.config import AlignParams, SamplingParams
from stars_engine.schedules import CalibratedSchedule, Estimate, PrefixTrust
from stars_engine.schedules.calibrated import WORTHWHILE
from stars_engine.types import Prompt

logger = logging.getLogger(__name__)

NUM_PROMPTS, NUM_ANSWERS = 48, 4  # a third of the draws of a stage
_FIELDS = (
    *("segment_len", "segment_end", "min_segment_len", "max_entropy", "lookahead"),
    "alternatives",
)


def prefix_trust(
    engine: Host,
    prompts: Sequence[Prompt],
    *,
    sampling: SamplingParams,
    align: AlignParams,
    reward_prompt: RewardPrompts = None,
    seed: int = 0,
) -> PrefixTrust | None:
    """Measure trust on plain answers to pilot prompts; None if answers have only one segment.

    Args:
        engine: The engine whose models are measured.
        prompts: Pilot prompts; the first 48 are used, with four answers each.
        sampling: The proposal and the length.
        align: Says how answers are cut into segments.
        reward_prompt: Replaces each prompt for the reward model.
        seed: Seed of the answers and of the intervals.
    """
    if sampling.max_tokens <= align.segment_len:
        return None  # whole answers are judged
    prompts = prompts[:NUM_PROMPTS]
    answers = plain_answers(
        engine,
        prompts,
        sampling=sampling.replace(n=NUM_ANSWERS, seed=seed),
        segments={name: getattr(align, name) for name in _FIELDS},
        reward_prompt=None if reward_prompt is None else reward_prompt[: len(prompts)],
        title="calibrate",
    )
    found = segment_trust(answers, align.segment_len, seed=seed)
    advantage, midway = found.advantage, found.spearman_midway
    if not np.isfinite([advantage.value, advantage.low, advantage.high]).all():
        advantage = Estimate(value=0.0, low=0.0, high=0.0)
    return PrefixTrust(
        advantage=advantage,
        spearman_midway=midway if np.isfinite(midway) else 0.0,
        num_prompts=len(prompts),
        num_answers=len(answers.outcomes),
    )


def warn_of_trust(schedule: CalibratedSchedule) -> None:
    """Log what follows from low trust; the caller makes sure that it is logged once."""
    if not schedule.is_untrusted or schedule.on_untrusted == "raise":
        return
    begin = untrusted_in_words(schedule)
    if schedule.on_untrusted == "best_of_n":
        logger.warning("%s. Calls sample Best-of-%d instead", begin, schedule.equivalent_n)
    else:
        logger.warning(
            "%s. Hint: set on_untrusted='best_of_n' for the schedule, use a longer segment_len, or "
            "a reward that judges unfinished text (stars train-guide makes one)",
            begin,
        )


def untrusted_in_words(schedule: CalibratedSchedule) -> str:
    """Return what was measured, as the beginning of a message."""
    trust = schedule.trust
    assert trust is not None
    said = trust.advantage
    return (
        "The reward of unfinished text says too little of the whole answer: the expected advantage "
        f"over Best-of-N is {said.value:.2f} [{said.low:.2f}, {said.high:.2f}] on "
        f"{trust.num_prompts} pilot prompts, below {WORTHWHILE}"
    )
