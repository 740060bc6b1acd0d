"""Read a prompt of a call: tokenize it, and check its settings against the model."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from stars_engine.algorithm.alternatives import AlternativeIds
from stars_engine.algorithm.noise import CounterNoise, fresh_seed
from stars_engine.algorithm.rollout import Rollout
from stars_engine.backends.base import PromptedModel
from stars_engine.chat.alternatives import AlternativeEncoder, check_openings
from stars_engine.chat.conversations import ResolvedPrompt, with_closed_reasoning
from stars_engine.chat.prompts import resolve_prompt
from stars_engine.chat.turns import described
from stars_engine.config import AlignParams, JsonGrammar, SamplingParams
from stars_engine.core.memory_budget import MemoryBudget, Reserved
from stars_engine.errors import (
    ConfigError,
    ContextOverflowError,
    Problem,
    PromptError,
)
from stars_engine.grammars import Grammars
from stars_engine.messages import Tool
from stars_engine.runtime.answers import CheckedPrompt
from stars_engine.runtime.request_group import PromptRequest, RequestGroup
from stars_engine.schema_formats.shortest import shortest_value
from stars_engine.threads.background_threads import BackgroundThreads


def read_prompt(
    group: RequestGroup,
    model: PromptedModel,
    background: BackgroundThreads,
    *,
    index: int,
    prompt_index: int,
    max_rows: int,
) -> Generator[Future[Any], None, CheckedPrompt]:
    """Tokenize and check one prompt.

    Raises:
        StarsError: The prompt exceeds a limit of the engine.
        PromptError: The prompt is invalid.
        ConfigError: A setting names tokens that the model does not have, or the grammar is
            invalid.
        MissingExtraError: A grammar is set, and the package that parses it is not installed.
    """
    if prompt_index in group.refused:
        raise group.refused[prompt_index]
    request = group.prompts[prompt_index]
    sampling = request.sampling or model.default_sampling()
    check_token_ids(sampling, model.vocab_size)
    resolve = partial(_resolve, group, request, sampling, model)
    if prompt_index in group.large:
        resolved, alternatives, fitted = yield from background.run(resolve, group)
    else:
        resolved, alternatives, fitted = resolve()
    check = partial(_check_grammar, model, sampling, fitted, resolved, alternatives)
    if _may_take_long(model, fitted, alternatives):
        yield from background.run(check, group)
    else:
        check()
    seed = fresh_seed() if sampling.seed is None else sampling.seed
    start = Rollout(
        prompt_ids=resolved.token_ids,
        reward_prompt=resolved.for_reward,
        sampling=fitted,
        align=_cap_candidates(max_rows, request.align),
        noise=CounterNoise(seed=seed, prompt_ids=resolved.token_ids, sample_index=0),
        seed=seed,
        prompt_index=prompt_index,
        prefill=resolved.prefill,
        spans=resolved.replies,
        alternatives=alternatives,
    )
    return CheckedPrompt(index, sampling.n, start, resolved.replies)


def _resolve(
    group: RequestGroup, request: PromptRequest, sampling: SamplingParams, model: PromptedModel
) -> tuple[ResolvedPrompt, tuple[AlternativeIds, ...], SamplingParams]:
    """Encode a prompt and its alternatives; return them, and settings that fit the context."""
    resolved = resolve_prompt(
        request.prompt,
        model.codec,
        prompt_format=group.prompt_format,
        template_kwargs=group.template_kwargs,
        reward_prompt=request.reward_prompt,
    )
    if sampling.grammar is not None:
        resolved = with_closed_reasoning(resolved)
    encoder = AlternativeEncoder(
        request.prompt, resolved, model.codec, group.prompt_format, group.template_kwargs, sampling
    )
    alternatives = encoder.encode(request.align)
    fitted = fit(resolved, with_chat(sampling, resolved), model, alternatives)
    return resolved, alternatives, fitted


def _may_take_long(
    model: PromptedModel, sampling: SamplingParams, alternatives: Sequence[AlternativeIds]
) -> bool:
    """Whether code that any thread may run must compile a grammar, or read openings with it."""
    if sampling.grammar is None:
        return False
    if not getattr(model, "has_grammars", True):
        return True
    grammars = getattr(model, "grammars", None)
    if not isinstance(grammars, Grammars):
        return False
    has_openings = any(alternative.opening_ids for alternative in alternatives)
    return has_openings or not grammars.is_compiled(sampling.grammar)


def _check_grammar(
    model: PromptedModel,
    sampling: SamplingParams,
    fitted: SamplingParams,
    prompt: ResolvedPrompt,
    alternatives: Sequence[AlternativeIds],
) -> None:
    try:
        model.check_grammar(fitted)
    except ConfigError:
        if prompt.grammar is not None and prompt.replies is not None:
            check_tools(prompt.replies.tools, sampling, model)
        raise
    grammars = getattr(model, "grammars", None) if fitted.grammar is not None else None
    if fitted.grammar is not None and isinstance(grammars, Grammars):
        check_openings(alternatives, grammars.start(fitted.grammar))


def with_chat(sampling: SamplingParams, prompt: ResolvedPrompt) -> SamplingParams:
    """Return sampling parameters with the stop strings and the grammar of a conversation.

    Raises:
        ConfigError: Both a grammar and tools constrain the answer.
    """
    if prompt.stop:
        sampling = sampling.replace(stop=(*sampling.stop, *prompt.stop))
    if prompt.grammar is None:
        return sampling
    if sampling.grammar is not None:
        message = (
            "the tools of the conversation already constrain the answer, so a grammar is not "
            "allowed. Hint: set Chat(tool_choice='none'), or remove the grammar"
        )
        raise ConfigError("SamplingParams", [Problem("grammar", message)])
    return sampling.replace(grammar=prompt.grammar)


def check_tools(tools: Sequence[Tool], sampling: SamplingParams, model: PromptedModel) -> None:
    """Check that a grammar can express the parameters of every tool.

    Raises:
        ConfigError: The parameters of a tool cannot be expressed; the error names the tool.
    """
    for tool in tools:
        try:
            model.check_grammar(sampling.replace(grammar=JsonGrammar(json_schema=tool.parameters)))
        except ConfigError as error:
            reason = error.problems[0].message.partition(". Hint:")[0]
            message = (
                f"{reason}. Hint: remove it from the parameters of {tool.name!r}, or set "
                "Chat(constrain_tools=False) to draft tool calls without a grammar"
            )
            raise ConfigError("Chat", [Problem("tools", message)]) from None


def fit(
    prompt: ResolvedPrompt,
    sampling: SamplingParams,
    model: PromptedModel,
    alternatives: Sequence[AlternativeIds] = (),
) -> SamplingParams:
    """Check prompt ids and length; lower `max_tokens` if `on_overflow` is "clamp".

    The longest prompt of the alternatives counts, too.

    Raises:
        PromptError: An id is outside the vocabulary.
        ContextOverflowError: Prompt and `max_tokens` exceed the context.
    """
    vocab_size, limit = model.vocab_size, model.context_len
    if max(prompt.token_ids) >= vocab_size:
        raise PromptError(
            f"token id {max(prompt.token_ids)} is outside the vocabulary; allowed: 0 to "
            f"{vocab_size - 1}. Hint: encode with this model's tokenizer"
        )
    others = [each.prompt_ids for each in alternatives if each.prompt_ids is not None]
    num_tokens = max(map(len, [prompt.token_ids, *others]))
    if limit is None or num_tokens + sampling.max_tokens <= limit:
        return sampling
    room = limit - num_tokens
    shortest = _shortest_call(prompt)
    if room >= shortest and sampling.on_overflow == "clamp":
        min_tokens = min(sampling.min_tokens, room)
        return sampling.replace(max_tokens=room, min_tokens=min_tokens)
    tools = () if prompt.replies is None else prompt.replies.tools
    about_tools, hint = "", "shorten the prompt"
    if tools:
        about_tools = f", about {_length(prompt, map(described, tools))} of them for its tools,"
        hint += ", or the descriptions and schemas of the tools"
    needed = f"max_tokens is {sampling.max_tokens}"
    if room < shortest > 1:
        needed = f"the shortest tool call has about {shortest}"
    elif room >= 1:
        hint += f", set max_tokens to at most {room}, or on_overflow='clamp'"
    what = "prompt"
    if num_tokens > len(prompt.token_ids):
        what, hint = "prompt with the longest of its alternatives", f"{hint}, or shorten its text"
    raise ContextOverflowError(
        f"the {what} has {num_tokens} tokens{about_tools} and {needed}; the model's "
        f"context is {limit} tokens. Hint: {hint}"
    )


def _shortest_call(prompt: ResolvedPrompt) -> int:
    """Return about how many tokens an answer has at least; 1 if it need not be a tool call."""
    replies = prompt.replies
    if replies is None or not (replies.must_call and replies.tools):
        return 1
    calls = (
        replies.form.write([(tool.name, shortest_value({**tool.parameters, "type": "object"}))])
        for tool in replies.tools
    )
    return min(_length(prompt, [call]) for call in calls)


def _length(prompt: ResolvedPrompt, texts: Iterable[str]) -> int:
    assert prompt.replies is not None
    return sum(len(prompt.replies.codec.encode(text)) for text in texts)


def check_memory_budget(rollout: Rollout, budget: MemoryBudget) -> None:
    """Check that a rollout fits the memory budget when it runs alone.

    Raises:
        ContextOverflowError: The rollout exceeds the budget.
    """
    if not budget.holds(rollout, Reserved()):
        others = len(rollout.prompt_lens) - 1
        about = f", the prompts of {others} alternatives come on top," if others else ""
        raise ContextOverflowError(
            f"the prompt has {len(rollout.prompt_ids)} tokens{about} and max_tokens is "
            f"{rollout.sampling.max_tokens}; the engine's budget is {budget.describe()}. "
            "Hint: shorten the prompt, lower max_tokens, or raise "
            "EngineParams(max_prefix_tokens=..., max_cache_bytes=...)"
        )


def check_token_ids(sampling: SamplingParams, vocab_size: int) -> None:
    """Check that biases and stop tokens are in the vocabulary and leave a token to draw.

    Raises:
        ConfigError: A token is outside the vocabulary, or biases exclude every token.
    """
    for name in ("logit_bias", "stop_token_ids"):
        for token in getattr(sampling, name) or ():
            if not 0 <= token < vocab_size:
                message = (
                    f"token id {token} is outside the vocabulary; allowed: 0 to {vocab_size - 1}. "
                    "Hint: use ids of this model's tokenizer"
                )
                raise ConfigError("SamplingParams", [Problem(name, message)])
    bias = sampling.logit_bias or {}
    if sum(value == -math.inf for value in bias.values()) >= vocab_size:
        message = (
            "-inf on every token leaves none to draw. Hint: leave at least one token without it"
        )
        raise ConfigError("SamplingParams", [Problem("logit_bias", message)])


def _cap_candidates(max_rows: int, align: AlignParams) -> AlignParams:
    """Limit `num_candidates` to the rows of a step. The text does not depend on it."""
    if align.num_candidates == "auto" or align.num_candidates <= max_rows:
        return align
    return align.replace(num_candidates=max_rows)
