"""What a caller gives for one prompt or for many: checked, and one question made of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from stars_engine.chat.prompts import as_prompt_list
from stars_engine.config import AlignParams, SamplingParams, StarsConfig
from stars_engine.errors import ConfigError, Problem, PromptError
from stars_engine.messages import Chat
from stars_engine.runtime.request_group import PromptRequest
from stars_engine.schedules import AutoSchedule, NoSchedule
from stars_engine.schema import Schema
from stars_engine.types import Prompt

Prompts = Prompt | Sequence[Prompt]
RewardPrompts = str | Chat | Sequence[str | Chat | None] | None
Samplings = SamplingParams | Sequence[SamplingParams] | None
Aligns = AlignParams | Sequence[AlignParams] | None
Params = TypeVar("Params", bound=Schema)


def prompt_requests(
    config: StarsConfig,
    prompts: Prompts,
    *,
    sampling: Samplings,
    align: Aligns,
    reward_prompt: RewardPrompts,
) -> tuple[PromptRequest, ...]:
    """Return one question per prompt, with all that it needs.

    Args:
        config: What holds where nothing is given.
        prompts: One or a sequence.
        sampling: One for all prompts, or one each.
        align: One for all prompts, or one each.
        reward_prompt: One for all prompts, or one each.

    Raises:
        PromptError: A prompt is none, or there is another number of reward prompts.
        ConfigError: Settings are of another class or number.
    """
    prompt_list = as_prompt_list(prompts)
    count = len(prompt_list)
    own = None if config.sampling == "model" else config.sampling
    samplings = _each("sampling", SamplingParams, sampling, own, count)
    aligns = _each("align", AlignParams, align, config.align, count)
    return tuple(
        PromptRequest(prompt, shown, proposal, _needed(config.with_thresholds(test), proposal))
        for prompt, shown, proposal, test in zip(
            prompt_list, _one_each(reward_prompt, count), samplings, aligns, strict=True
        )
    )


def _needed(align: AlignParams, sampling: SamplingParams | None) -> AlignParams:
    """Return the test without thresholds to be found, where nothing will be judged by them."""
    if sampling is None or not align.judges_none_of(sampling):
        return align
    if not isinstance(align.schedule, AutoSchedule):
        return align
    return align.replace(schedule=NoSchedule())


def _each(
    name: str,
    kind: type[Params],
    given: Params | Sequence[Params] | None,
    default: Params | None,
    count: int,
) -> Sequence[Params | None]:
    """Return one setting per prompt: the given one, the given ones, or the default."""
    if given is None:
        return [default] * count
    if isinstance(given, kind):
        return [given] * count
    cure = f"give {kind.__name__}(...) for all prompts, or a list with one for each"
    if isinstance(given, str | Mapping) or not isinstance(given, Sequence):
        raise _problem(name, f"{type(given).__name__} is not allowed; {cure}")
    if len(given) != count:
        raise _problem(name, f"{len(given)} settings for {count} prompts; {cure}")
    for item in given:
        if not isinstance(item, kind):
            raise _problem(name, f"{type(item).__name__} is not allowed in the list; {cure}")
    return given


def _one_each(reward_prompt: RewardPrompts, count: int) -> Sequence[str | Chat | None]:
    if reward_prompt is None or isinstance(reward_prompt, str | Chat):
        return [reward_prompt] * count
    if len(reward_prompt) != count:
        raise PromptError(
            f"{len(reward_prompt)} reward prompts for {count} prompts. Cure: give one for all, or "
            "a list with one for each (None where the prompt itself is meant)"
        )
    return reward_prompt


def _problem(field: str, message: str) -> ConfigError:
    return ConfigError("StarsEngine", [Problem(field, message)])
