"""Limits on the size of a call, checked on the caller's thread before any work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from stars_engine.config import EngineParams, SamplingParams
from stars_engine.errors import ConfigError, Problem, PromptError, StarsError
from stars_engine.messages import Chat
from stars_engine.runtime.request_group import PromptRequest, RequestGroup

LONG_TEXT = 16_384  # characters of a prompt that is read in the background
_MAX_BIASES = 524_288  # more than any vocabulary
_CHARS_PER_STOP = 1000  # on average; a single stop string may be longer


def within_limits(group: RequestGroup, params: EngineParams) -> RequestGroup:
    """Return a group that notes which of its prompts are large, or exceed a limit.

    Raises:
        ConfigError: The call has too many answers.
    """
    if group.num_samples > params.max_n:
        raise _too_large("best_of_n", "n", "max_n", group.num_samples, params.max_n)
    check_num_answers(group.num_rollouts, params)
    _measure(group, params)
    return group


def check_num_answers(count: int, params: EngineParams) -> None:
    """Check the number of answers of a call.

    Raises:
        ConfigError: There are too many.
    """
    if count > params.max_answers:
        message = (
            f"a call with {count} answers is too large; allowed: at most {params.max_answers}. "
            "Hint: split the call, lower n, or raise EngineParams(max_answers=...)"
        )
        raise ConfigError("StarsEngine", [Problem("prompts", message)])


def check_text(what: str, text: Any, params: EngineParams) -> int:
    """Return about how many characters a prompt or another text has.

    Raises:
        PromptError: It is too long.
    """
    size = size_of(text)
    most = params.max_prompt_chars
    if size > most:
        raise PromptError(
            _too_long(f"{what} has about", size, most, "shorten it", "max_prompt_chars")
        )
    return size


def _measure(group: RequestGroup, params: EngineParams) -> None:
    """Note the errors of prompts that exceed a limit, and which prompts are large.

    Prompts of one call mostly share their settings, which are measured once.
    """
    checked: dict[int, StarsError | None] = {}
    refused: dict[int, StarsError] = {}
    large: set[int] = set()
    for index, request in enumerate(group.prompts):
        sampling = request.sampling
        if sampling is not None and id(sampling) not in checked:
            checked[id(sampling)] = _refusal(sampling, params)
        own = None if sampling is None else checked[id(sampling)]
        if own is not None:
            refused[index] = own
            continue
        try:
            if _num_chars(request, params) > LONG_TEXT or _has_grammar_of_tools(request):
                large.add(index)
        except StarsError as error:
            refused[index] = error
    group.refused, group.large = refused, frozenset(large)


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
    for field, limit, count in (
        ("n", "max_n", sampling.n),
        ("stop", "max_stop_strings", len(sampling.stop)),
        ("stop_token_ids", "max_stop_strings", len(sampling.stop_token_ids)),
    ):
        if count > getattr(params, limit):
            return _too_large("SamplingParams", field, limit, count, getattr(params, limit))
    num_biases = len(sampling.logit_bias or ())
    if num_biases > _MAX_BIASES:
        message = (
            f"{num_biases} entries are too many; allowed: at most {_MAX_BIASES}. Hint: give one "
            "for each token of the model at most"
        )
        return ConfigError("SamplingParams", [Problem("logit_bias", message)])
    num_chars = sum(map(len, sampling.stop))
    most_chars = params.max_stop_strings * _CHARS_PER_STOP
    if num_chars > most_chars:
        message = _too_long(
            "the stop strings have", num_chars, most_chars, "shorten them", "max_stop_strings"
        )
        return ConfigError("SamplingParams", [Problem("stop", message)])
    if sampling.grammar is None:
        return None
    size, most = size_of(sampling.grammar), params.max_grammar_chars
    if size > most:
        message = _too_long("the grammar has about", size, most, "simplify it", "max_grammar_chars")
        return ConfigError("SamplingParams", [Problem("grammar", message)])
    return None


def _num_chars(request: PromptRequest, params: EngineParams) -> int:
    """Return about how many characters are read for a prompt.

    Raises:
        StarsError: It exceeds a limit.
    """
    if _has_grammar_of_tools(request):
        assert isinstance(request.prompt, Chat)
        size = sum(size_of(tool.parameters) for tool in request.prompt.callable_tools)
        most = params.max_grammar_chars
        if size > most:
            message = _too_long(
                "their parameters have about", size, most, "give fewer tools", "max_grammar_chars"
            )
            raise ConfigError("Chat", [Problem("tools", message)])
    num_chars = check_text("the prompt", request.prompt, params)
    num_chars += check_text("the text of all alternatives", request.align.alternatives, params)
    return num_chars + check_text("reward_prompt", request.reward_prompt, params)


def _has_grammar_of_tools(request: PromptRequest) -> bool:
    """Whether a grammar is made for a conversation, which may take long for small schemas, too."""
    prompt = request.prompt
    return isinstance(prompt, Chat) and bool(prompt.callable_tools) and prompt.constrain_tools


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


def _too_long(what: str, size: int, most: int, remedy: str, limit: str) -> str:
    return (
        f"{what} {size} characters; allowed: at most {most}. Hint: {remedy}, or raise "
        f"EngineParams({limit}=...)"
    )
