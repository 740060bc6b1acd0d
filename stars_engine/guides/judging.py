"""Judge samples: whole answers to learn from, and some beginnings to compare with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from stars_engine.calibration.judges import Judge, ask_judge
from stars_engine.config import RewardConfig
from stars_engine.config.rewards import as_reward
from stars_engine.errors import ConfigError, Problem
from stars_engine.guides.samples import JudgedAnswer, ProgressCallback
from stars_engine.rewards.base import score_values
from stars_engine.rewards.loading import load_reward
from stars_engine.types import RewardInput, RewardPrompt

Texts = Sequence[tuple[str, str, bool]]  # prompt, answer, whether it is finished
_BATCH = 64


def scorer_of(judge: Judge | RewardConfig | str) -> Callable[[Texts], list[float]]:
    """Return a function that scores texts.

    Args:
        judge: A reward's config object or name, or a callable f(prompt, answer) -> number.

    Raises:
        ConfigError: It is something else.
    """
    given: Any = as_reward(judge) if isinstance(judge, str) else judge
    if callable(given) and not isinstance(given, type):
        return lambda texts: [ask_judge(given, prompt, answer) for prompt, answer, _ in texts]
    if not hasattr(given, "kind"):
        message = (
            f"{given!r} is not allowed. Hint: use a callable f(prompt, answer) -> number, or a "
            "reward's config object or name"
        )
        raise ConfigError("train_guide", [Problem("judge", message)])
    model = load_reward(given)

    def score(texts: Texts) -> list[float]:
        inputs = [RewardInput(RewardPrompt(p), a, (), finished=done) for p, a, done in texts]
        return score_values(model, inputs)

    return score


def judge_samples(
    samples: Sequence[JudgedAnswer],
    score: Callable[[Texts], list[float]],
    codec: Any,
    positions: Sequence[int],
    *,
    num_compared: int,
    progress: ProgressCallback,
) -> list[JudgedAnswer]:
    """Return samples with their scores; of some, also the scores of their beginnings.

    Args:
        samples: The samples. Those that have a score keep it.
        score: Scores texts.
        codec: Decodes beginnings.
        positions: Lengths of beginnings, in tokens.
        num_compared: Number of samples whose beginnings are judged, whole prompts first.
        progress: Called with "judging", texts done, and all texts.
    """
    wanted: list[tuple[int, int | None]] = [
        (index, None) for index, sample in enumerate(samples) if sample.score is None
    ]
    for index, sample in enumerate(samples[:num_compared]):
        wanted += [(index, size) for size in positions if size < len(sample.token_ids)]
    found = list(samples)
    for first in range(0, len(wanted), _BATCH):
        progress("judging", first, len(wanted))
        some = wanted[first : first + _BATCH]
        texts = [_text(found[index], size, codec) for index, size in some]
        for (index, size), value in zip(some, score(texts), strict=True):
            sample = found[index]
            if size is None:
                found[index] = replace(sample, score=value)
            else:
                found[index] = replace(sample, partial={**sample.partial, size: value})
    progress("judging", len(wanted), len(wanted))
    return found


def _text(sample: JudgedAnswer, size: int | None, codec: Any) -> tuple[str, str, bool]:
    if size is None:
        return sample.prompt, sample.text, True
    text, _ = codec.completion_text(sample.prompt_ids, sample.token_ids[:size])
    return sample.prompt, text, False
