"""Check the arguments of a call, in the caller's thread: one `PromptRequest` per prompt.

The engine's thread reads the prompts later: see `runtime.input_processor`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from stars_engine.chat.prompts import as_prompt_list
from stars_engine.config import AlignParams, SamplingParams, StarsConfig
from stars_engine.config.flat import check_names
from stars_engine.config.presets import preset
from stars_engine.errors import ConfigError, Problem, PromptError
from stars_engine.messages import Chat
from stars_engine.runtime.request_group import PromptRequest
from stars_engine.schedules import AutoSchedule, NoSchedule
from stars_engine.schema import Schema
from stars_engine.types import Prompt

Prompts = Prompt | Sequence[Prompt]
RewardPrompts = str | Chat | Sequence[str | Chat | None] | None
Samplings = SamplingParams | Sequence[SamplingParams] | None
Aligns = AlignParams | str | Sequence[AlignParams] | None  # text is the name of a preset
Params = TypeVar("Params", bound=Schema)


def prompt_requests(
    config: StarsConfig,
    prompts: Prompts,
    *,
    sampling: Samplings,
    align: Aligns,
    reward_prompt: RewardPrompts,
    fields: Mapping[str, Any],
    default_sampling: Callable[[], SamplingParams],
) -> tuple[PromptRequest, ...]:
    """Return one request per prompt.

    Args:
        config: Supplies the defaults.
        prompts: One prompt or a sequence of prompts.
        sampling: One for all prompts, or one for each.
        align: One for all prompts, or one for each.
        reward_prompt: One for all prompts, or one for each.
        fields: Fields of `SamplingParams` and `AlignParams` that replace those of all prompts.
        default_sampling: Returns the proposal where neither the call nor the config has one.

    Raises:
        PromptError: A prompt is invalid, or the number of reward prompts is wrong.
        ConfigError: The type or the number of settings is wrong.
    """
    prompt_list = as_prompt_list(prompts)
    count = len(prompt_list)
    own = None if config.sampling == "model" else config.sampling
    proposals, tests = _parted(fields)
    if proposals and sampling is None and own is None:
        own = default_sampling()
    if isinstance(align, str):
        align = preset(align)
    samplings = _each("sampling", SamplingParams, sampling, own, count, changes=proposals)
    aligns = _each("align", AlignParams, align, config.align, count, changes=tests)
    return tuple(
        PromptRequest(
            prompt,
            shown,
            proposal,
            _without_unused_calibration(config.with_thresholds(test), proposal),
        )
        for prompt, shown, proposal, test in zip(
            prompt_list, _one_each(reward_prompt, count), samplings, aligns, strict=True
        )
    )


def _without_unused_calibration(align: AlignParams, sampling: SamplingParams | None) -> AlignParams:
    """Return settings without `AutoSchedule` if no segment will be judged."""
    if sampling is None or not align.judges_none_of(sampling):
        return align
    if not isinstance(align.schedule, AutoSchedule):
        return align
    return align.replace(schedule=NoSchedule())


def _parted(fields: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the given fields of `SamplingParams` and those of `AlignParams`."""
    check_names(fields, owner="the call", parts=(SamplingParams, AlignParams))
    proposals = {name: fields[name] for name in fields if name in SamplingParams.model_fields}
    return proposals, {name: fields[name] for name in fields if name not in proposals}


def _each(
    name: str,
    kind: type[Params],
    given: Any,
    default: Params | None,
    count: int,
    *,
    changes: Mapping[str, Any],
) -> Sequence[Params | None]:
    """Return one setting per prompt: the given one or ones, or the default, with changes."""
    given = default if given is None else given
    if given is None:
        return [None] * count
    if isinstance(given, kind):
        return [given.replace(**changes) if changes else given] * count
    hint = f"pass one {kind.__name__}(...) for all prompts, or a list with one for each"
    if isinstance(given, str | Mapping) or not isinstance(given, Sequence):
        raise _problem(name, f"{type(given).__name__} is not allowed. Hint: {hint}")
    if len(given) != count:
        raise _problem(name, f"{len(given)} settings for {count} prompts. Hint: {hint}")
    for item in given:
        if not isinstance(item, kind):
            raise _problem(name, f"{type(item).__name__} is not allowed in the list. Hint: {hint}")
    return [item.replace(**changes) for item in given] if changes else given


def _one_each(reward_prompt: RewardPrompts, count: int) -> Sequence[str | Chat | None]:
    if reward_prompt is None or isinstance(reward_prompt, str | Chat):
        return [reward_prompt] * count
    if len(reward_prompt) != count:
        raise PromptError(
            f"{len(reward_prompt)} reward prompts for {count} prompts. Hint: pass one for all "
            "prompts, or a list with one for each; None stands for the prompt itself"
        )
    return reward_prompt


def _problem(field: str, message: str) -> ConfigError:
    return ConfigError("StarsEngine", [Problem(field, message)])
