"""Judges of whole answers: a second opinion for the trust report."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

from stars_engine.config import RewardConfig
from stars_engine.config.rewards import as_reward
from stars_engine.errors import ConfigError, Problem, RewardError, describe_error
from stars_engine.rewards.base import score_values
from stars_engine.rewards.loading import load_reward
from stars_engine.scalars import real_number
from stars_engine.types import RewardInput, RewardPrompt, StarsResult

Judge = Callable[[str, str], float]
_REWARDS = get_args(get_args(RewardConfig)[0])  # the classes of config objects


def as_judge(judge: Judge | RewardConfig | str | None) -> Judge | None:
    """Return a callable that judges whole answers; None for None.

    Raises:
        ConfigError: `judge` is neither a callable nor a reward.
    """
    judge = as_reward(judge) if isinstance(judge, str) else judge
    if isinstance(judge, _REWARDS):
        return _reward_judge(judge)
    if judge is None or (callable(judge) and not isinstance(judge, type)):
        return judge
    message = (
        f"{judge!r} is not allowed. Hint: use a callable f(prompt, answer) -> number, a reward's "
        "config object or name, or None for the reward itself"
    )
    raise ConfigError("trust_report", [Problem("judge", message)])


def opinion_of(judge: Judge, prompt: str, result: StarsResult) -> float:
    """Return the opinion of a judge on one answer.

    Raises:
        RewardError: The judge failed, or did not return a number.
    """
    about = f"an answer to prompts[{result.prompt_index}]"
    return ask_judge(judge, prompt, result.text, about=about, result=result)


def ask_judge(
    judge: Judge,
    prompt: str,
    answer: str,
    *,
    about: str = "an answer",
    result: StarsResult | None = None,
) -> float:
    """Call a judge.

    Args:
        judge: The judge.
        prompt: The prompt.
        answer: The answer.
        about: What the answer is called in an error.
        result: What an error carries.

    Raises:
        RewardError: The judge failed, or did not return a number.
    """
    try:
        return real_number(judge(prompt, answer), "the judge's score")
    except Exception as error:
        raise RewardError(
            f"the judge failed on {about}: {describe_error(error)}. Hint: fix the judge; it takes "
            "(prompt, answer) and returns a number, or nan to exclude the answer",
            result,
        ) from error


def _reward_judge(config: RewardConfig) -> Judge:
    """Load a reward model that judges whole answers as text."""
    model = load_reward(config)

    def opinion(prompt: str, answer: str) -> float:
        item = RewardInput(RewardPrompt(prompt), answer, (), finished=True)
        [value] = score_values(model, [item])
        return value

    return opinion
