"""Plain answers with a reward at every border of their segments: what trust is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from stars_engine.calibration.host import Host, RewardPrompts
from stars_engine.calibration.judges import Judge, opinion_of
from stars_engine.calibration.trust import Answers
from stars_engine.config import AlignParams, SamplingParams
from stars_engine.errors import ConfigError, Problem
from stars_engine.schedules import NoSchedule
from stars_engine.types import Prompt, StarsResult


def plain_answers(
    engine: Host,
    prompts: Sequence[Prompt],
    *,
    sampling: SamplingParams,
    segments: dict[str, Any],
    reward_prompt: RewardPrompts = None,
    judge: Judge | None = None,
    title: str,
) -> Answers:
    """Sample answers plainly, with their rewards at each border and their outcomes.

    Args:
        engine: The engine whose models are measured.
        prompts: The prompts.
        sampling: The proposal; `n` answers to each prompt.
        segments: The fields of `AlignParams` that cut and score segments.
        reward_prompt: Replaces each prompt for the reward model.
        judge: Returns the outcome of an answer; None: it is the reward of the whole answer.
        title: What is measured, for errors.

    Raises:
        ConfigError: No answer has a finite outcome.
    """
    align = AlignParams(schedule=NoSchedule(), num_candidates=1, **segments)
    results = engine.generate(prompts, sampling=sampling, align=align, reward_prompt=reward_prompt)
    return _answers(results, prompts, judge, title)


def _answers(
    results: Sequence[StarsResult], prompts: Sequence[Prompt], judge: Judge | None, title: str
) -> Answers:
    used, outcomes = [], []
    for result in results:
        own = _rewards(result)
        if not own:
            continue
        outcome = own[-1]
        if judge is not None:
            outcome = opinion_of(judge, _text(prompts[result.prompt_index]), result)
        if np.isfinite(outcome):
            used.append(result)
            outcomes.append(outcome)
    if not used:
        message = (
            "no answer has a finite outcome. Hint: raise max_tokens, or "
            "check the reward and the judge"
        )
        raise ConfigError(title, [Problem("sampling", message)])
    rewards = [np.array(_rewards(result)) for result in used]
    tokens = [np.cumsum([len(s.token_ids) for s in result.segments]) for result in used]
    return Answers(
        np.array([result.prompt_index for result in used]),
        rewards,
        [part.astype(float) for part in tokens],
        np.array(outcomes, dtype=float),
    )


def _rewards(result: StarsResult) -> list[float]:
    """Return the rewards at every border of an answer; empty if one is missing."""
    rewards = [s.reward for s in result.segments if s.reward is not None]
    return rewards if len(rewards) == len(result.segments) else []


def _text(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    messages = getattr(prompt, "messages", None) or ()
    return getattr(prompt, "text", None) or "\n\n".join(message.content for message in messages)
