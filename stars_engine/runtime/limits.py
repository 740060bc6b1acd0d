"""Limits on the size of a call, checked on the caller's thread before any work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from stars_engine.config import EngineParams, SamplingParams
from stars_engine.errors import ConfigError, Problem, PromptError, StarsError
from stars_engine.runtime.request_group import PromptRequest, RequestGroup

_CHARS_PER_STOP = 1000  # on average; a single stop string may be longer


def within_limits(group: RequestGroup, params: EngineParams) -> RequestGroup:
    """Return a group that notes which of its prompts exceed a limit.

    Raises:
        ConfigError: The call has too many answers.
    """
    if group.num_samples > params.max_n:
        raise _too_large("best_of_n", "n", "max_n", group.num_samples, params.max_n)
    if group.num_rollouts > params.max_answers:
        message = (
            f"a call with {group.num_rollouts} answers is too large; allowed: at most "
            f"{params.max_answers}. Hint: split the call, lower n, or raise "
            "EngineParams(max_answers=...)"
        )
        raise ConfigError("StarsEngine", [Problem("prompts", message)])
    group.refused = _refused_prompts(group, params)
    return group


def _refused_prompts(group: RequestGroup, params: EngineParams) -> dict[int, StarsError]:
    """Return the errors of prompts that exceed a limit, by position.

    Prompts of one call mostly share their settings, which are measured once.
    """
    checked: dict[int, StarsError | None] = {}
    refused: dict[int, StarsError] = {}
    for index, request in enumerate(group.prompts):
        sampling = request.sampling
        if sampling is not None and id(sampling) not in checked:
            checked[id(sampling)] = _refusal(sampling, params)
        own = None if sampling is None else checked[id(sampling)]
        error = own or _refused_text(request, params)
        if error is not None:
            refused[index] = error
    return refused


def size_of(value: Any) -> int:
    """Return about how many characters a prompt, a grammar or a part of them has.

    It is not recursive, since nesting may be deep.
    """
    size, todo = 0, [value]
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            size += len(item)
            continue
        size += 1
        if isinstance(item, BaseModel):
            todo.extend(getattr(item, name) for name in type(item).model_fields)
        elif isinstance(item, Mapping):
            todo += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple)):
            if item and isinstance(item[0], int):  # token ids
                size += len(item)
            else:
                todo += item
    return size


def _refusal(sampling: SamplingParams, params: EngineParams) -> StarsError | None:
    """Return why settings are refused, if they are."""
    if sampling.n > params.max_n:
        return _too_large("SamplingParams", "n", "max_n", sampling.n, params.max_n)
    num_stops, most = len(sampling.stop), params.max_stop_strings
    if num_stops > most:
        return _too_large("SamplingParams", "stop", "max_stop_strings", num_stops, most)
    num_chars = sum(map(len, sampling.stop))
    if num_chars > most * _CHARS_PER_STOP:
        message = (
            f"the stop strings have {num_chars} characters; allowed: at most "
            f"{most * _CHARS_PER_STOP}. Hint: shorten them, or raise "
            "EngineParams(max_stop_strings=...)"
        )
        return ConfigError("SamplingParams", [Problem("stop", message)])
    if sampling.grammar is None:
        return None
    size = size_of(sampling.grammar)
    if size > params.max_grammar_chars:
        message = (
            f"the grammar has about {size} characters; allowed: at most "
            f"{params.max_grammar_chars}. Hint: simplify it, or raise "
            "EngineParams(max_grammar_chars=...)"
        )
        return ConfigError("SamplingParams", [Problem("grammar", message)])
    return None


def _refused_text(request: PromptRequest, params: EngineParams) -> StarsError | None:
    for what, text in (("the prompt", request.prompt), ("reward_prompt", request.reward_prompt)):
        size = size_of(text)
        if size > params.max_prompt_chars:
            return PromptError(
                f"{what} has about {size} characters; allowed: at most {params.max_prompt_chars}. "
                "Hint: shorten it, or raise EngineParams(max_prompt_chars=...)"
            )
    return None


def _too_large(title: str, field: str, limit: str, value: int, most: int) -> ConfigError:
    return ConfigError(
        title,
        [
            Problem(
                field,
                f"{value} is too large; allowed: at most {most}. Hint: lower it, or raise "
                f"EngineParams({limit}=...)",
            )
        ],
    )
