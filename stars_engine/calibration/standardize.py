"""Standardize the parts of a composite reward on a plain pilot, so that weights compare."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean, pstdev

from stars_engine.calibration.host import Host, RewardPrompts
from stars_engine.calibration.pilot_prompts import (
    checked_prompts,
    neutral_prompts,
    uses_chat_format,
)
from stars_engine.config import AlignParams, CompositeReward, SamplingParams
from stars_engine.errors import ConfigError, Problem
from stars_engine.schedules import NoSchedule
from stars_engine.types import Prompt

_DEFAULT_PROMPTS = 64


def standardize(
    engine: Host,
    prompts: Sequence[Prompt] | None = None,
    *,
    segment_len: int = 16,
    sampling: SamplingParams | None = None,
    reward_prompt: RewardPrompts = None,
    seed: int = 3,
) -> CompositeReward:
    """Return the engine's composite reward with the mean and standard deviation of each part set.

    They are measured at all segment borders of plainly sampled answers. With standardized parts, a
    weight of 2 counts twice as much as a weight of 1, whatever the units.

    Args:
        engine: A `StarsEngine` whose reward is a `CompositeReward`.
        prompts: Pilot prompts similar to those of later use; None: a neutral set from the package.
        segment_len: Tokens between borders.
        sampling: The proposal and the length; None: the engine's.
        reward_prompt: Replaces each prompt for the reward model.
        seed: Seed of the answers.

    Raises:
        ConfigError: The reward is not a composite, `prompts` is not a list of prompts, or a part
            has no finite value or does not vary.
    """
    reward = engine.config.reward
    if not isinstance(reward, CompositeReward):
        message = f"{reward.kind!r} has no parts. Hint: use a CompositeReward"
        raise ConfigError("standardize", [Problem("reward", message)])
    if prompts is None:
        prompts = neutral_prompts(chat=uses_chat_format(engine), seed=seed)[:_DEFAULT_PROMPTS]
    prompts = checked_prompts("standardize", prompts)
    sampling = (engine.sampling if sampling is None else sampling).replace(seed=seed, n=1)
    plain = AlignParams(schedule=NoSchedule(), segment_len=segment_len, num_candidates=1)
    results = engine.generate(prompts, sampling=sampling, align=plain, reward_prompt=reward_prompt)
    values: dict[str, list[float]] = defaultdict(list)
    for result in results:
        drawn = [segment.attempts for segment in result.segments] + [result.abandoned_attempts]
        for attempt in [attempt for attempts in drawn for attempt in attempts]:
            for name, value in (attempt.parts or {}).items():
                if value is not None and math.isfinite(value):
                    values[name].append(value)
    return reward.replace(
        parts={
            name: part.replace(**_scale(name, values[name])) for name, part in reward.parts.items()
        }
    )


def _scale(name: str, values: Sequence[float]) -> dict[str, float]:
    std = pstdev(values) if values else 0.0
    if std == 0:
        said = f"is {values[0]} on all {len(values)} pilot texts" if values else "has no value"
        message = (
            f"{said}. Hint: check the part, set its mean and std by hand, or use longer answers"
        )
        raise ConfigError("standardize", [Problem(f"parts.{name}", message)])
    return {"mean": fmean(values), "std": std}
