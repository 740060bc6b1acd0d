"""From a question to rollouts: prompts read, lengths and token ids checked against the model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from stars_engine.backends.base import PromptedModel
from stars_engine.chat.conversations import ResolvedPrompt, without_thought
from stars_engine.chat.prompts import resolve_prompt
from stars_engine.config import AlignParams, JsonGrammar, SamplingParams
from stars_engine.errors import (
    ConfigError,
    ContextOverflowError,
    Problem,
    PromptError,
    StarsError,
)
from stars_engine.messages import Tool
from stars_engine.noise import CounterNoise, fresh_seed
from stars_engine.rollout import Rollout
from stars_engine.runtime.bounds import Budget, Taken
from stars_engine.runtime.calls import Answer, Call, Question
from stars_engine.types import RewardPrompt


def read_prompts(
    call: Call, model: PromptedModel, *, max_rows: int, budget: Budget | None = None
) -> Iterator[None]:
    """Read a call's prompts one by one, so that others need not wait for a long list of them.

    Each becomes answers in the making, or the error that it would meet.
    """
    index = 0
    for prompt_index, question in enumerate(call.questions):
        try:
            rollouts = read_question(question, call, model, prompt_index, max_rows=max_rows)
            if budget is not None:
                check_room(rollouts, budget)
        except StarsError as error:
            for offset in range(question.num_answers):
                call.put_outcome(index + offset, error)
        else:
            call.answers += [
                Answer(call, index + offset, rollout) for offset, rollout in enumerate(rollouts)
            ]
        index += question.num_answers
        yield


def unread_answers(call: Call) -> list[Answer]:
    """Return answers for a call that ends before its prompts are read: the model never saw them."""
    nothing = RewardPrompt("", ())
    rollouts = []
    for prompt_index, question in enumerate(call.questions):
        sampling = question.sampling or SamplingParams()
        seed = fresh_seed() if sampling.seed is None else sampling.seed
        for sample_index in range(question.num_answers):
            noise = CounterNoise(seed=seed, prompt_ids=(), sample_index=sample_index)
            rollout = Rollout((), nothing, sampling, question.align, noise, seed)
            rollout.prompt_index, rollout.sample_index = prompt_index, sample_index
            rollout.started_s = call.submitted_s
            rollouts.append(rollout)
    return [Answer(call, index, rollout) for index, rollout in enumerate(rollouts)]


def read_question(
    question: Question, call: Call, model: PromptedModel, prompt_index: int, *, max_rows: int
) -> list[Rollout]:
    """Return the rollouts of one prompt, `n` of them.

    Raises:
        PromptError: The prompt cannot be used.
        ConfigError: A setting names tokens that the model does not have, or a grammar is none.
        MissingExtraError: There is a grammar, and nothing to read it with.
    """
    sampling = question.sampling or model.default_sampling()
    check_token_ids(sampling, model.vocab_size)
    resolved = resolve_prompt(
        question.prompt,
        model.codec,
        prompt_format=call.prompt_format,
        template_kwargs=call.template_kwargs,
        reward_prompt=question.reward_prompt,
    )
    if sampling.grammar is not None:
        resolved = without_thought(resolved)
    fitted = fit(resolved, with_chat(sampling, resolved), model)
    try:
        model.check_grammar(fitted)
    except ConfigError:
        if resolved.grammar is not None and resolved.replies is not None:
            check_tools(resolved.replies.tools, sampling, model)
        raise
    seed = fresh_seed() if sampling.seed is None else sampling.seed
    ids = resolved.token_ids
    return [
        Rollout(
            prompt_ids=ids,
            reward_prompt=resolved.for_reward,
            sampling=fitted,
            align=_within(max_rows, question.align),
            noise=CounterNoise(seed=seed, prompt_ids=ids, sample_index=sample_index),
            seed=seed,
            prompt_index=prompt_index,
            sample_index=sample_index,
            begun=resolved.begun,
            replies=resolved.replies,
            started_s=call.submitted_s,
        )
        for sample_index in range(sampling.n)
    ]


def with_chat(sampling: SamplingParams, prompt: ResolvedPrompt) -> SamplingParams:
    """Return settings with what a conversation asks of the answer.

    Raises:
        ConfigError: A grammar and tools both say what the answer is to be.
    """
    if prompt.stop:
        sampling = sampling.replace(stop=(*sampling.stop, *prompt.stop))
    if prompt.grammar is None:
        return sampling
    if sampling.grammar is not None:
        message = (
            "the tools of the conversation say what the answer may be, and so does this grammar. "
            "Cure: Chat(tool_choice='none'), or no grammar"
        )
        raise ConfigError("SamplingParams", [Problem("grammar", message)])
    return sampling.replace(grammar=prompt.grammar)


def check_tools(tools: Sequence[Tool], sampling: SamplingParams, model: PromptedModel) -> None:
    """Name the tool whose parameters no grammar can keep to.

    Raises:
        ConfigError: There is one.
    """
    for tool in tools:
        try:
            model.check_grammar(sampling.replace(grammar=JsonGrammar(json_schema=tool.parameters)))
        except ConfigError as error:
            reason = error.problems[0].message.partition(". Cure:")[0]
            message = (
                f"{reason}. Cure: leave that out of the parameters of {tool.name!r}, or "
                "Chat(constrain_tools=False) to have calls drafted freely"
            )
            raise ConfigError("Chat", [Problem("tools", message)]) from None


def fit(prompt: ResolvedPrompt, sampling: SamplingParams, model: PromptedModel) -> SamplingParams:
    """Check prompt ids and length; lower `max_tokens` where `on_overflow` says so.

    Raises:
        PromptError: An id is outside the vocabulary.
        ContextOverflowError: Prompt and `max_tokens` exceed the context.
    """
    vocab_size, limit = model.vocab_size, model.context_len
    if max(prompt.token_ids) >= vocab_size:
        raise PromptError(
            f"token id {max(prompt.token_ids)} is outside the vocabulary of {vocab_size}. "
            "Cure: encode with this model's tokenizer"
        )
    if limit is None or len(prompt.token_ids) + sampling.max_tokens <= limit:
        return sampling
    room = limit - len(prompt.token_ids)
    if room >= 1 and sampling.on_overflow == "clamp":
        min_tokens = min(sampling.min_tokens, room)
        return sampling.replace(max_tokens=room, min_tokens=min_tokens)
    cure = "shorten the prompt"
    if room >= 1:
        cure += f", set max_tokens to at most {room}, or on_overflow='clamp'"
    raise ContextOverflowError(
        f"the prompt has {len(prompt.token_ids)} tokens and max_tokens is "
        f"{sampling.max_tokens}; the model reads {limit} in all. Cure: {cure}"
    )


def check_room(rollouts: Sequence[Rollout], budget: Budget) -> None:
    """Check that each may be in progress, alone if need be.

    Raises:
        ContextOverflowError: It is longer than all texts in progress may be together.
    """
    for rollout in rollouts:
        if not budget.holds(rollout, Taken()):
            raise ContextOverflowError(
                f"the prompt has {len(rollout.prompt_ids)} tokens and max_tokens is "
                f"{rollout.sampling.max_tokens}; the engine keeps {budget.told()} at a time. Cure: "
                "shorten the prompt, lower max_tokens, or raise "
                "EngineParams(max_prefix_tokens=..., max_cache_bytes=...)"
            )


def check_token_ids(sampling: SamplingParams, vocab_size: int) -> None:
    """Check that biases and stop tokens are in the vocabulary, and leave some token to draw.

    Raises:
        ConfigError: They are not, or do not.
    """
    for name in ("logit_bias", "stop_token_ids"):
        for token in getattr(sampling, name) or ():
            if not 0 <= token < vocab_size:
                message = f"token id {token} is outside the vocabulary, 0 to {vocab_size - 1}"
                raise ConfigError("SamplingParams", [Problem(name, message)])
    bias = sampling.logit_bias or {}
    if sum(value == -math.inf for value in bias.values()) >= vocab_size:
        message = "-inf on every token leaves none to draw; leave at least one token out"
        raise ConfigError("SamplingParams", [Problem("logit_bias", message)])


def _within(max_rows: int, align: AlignParams) -> AlignParams:
    """Draft no more candidates at once than a round holds; text does not depend on it."""
    if align.num_candidates == "auto" or align.num_candidates <= max_rows:
        return align
    return align.replace(num_candidates=max_rows)
