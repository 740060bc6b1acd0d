"""Read the prompts of a call one by one, the first of them before its first answer starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

from stars_engine.backends.base import PromptedModel
from stars_engine.core.drafter import model_failed
from stars_engine.core.memory_budget import MemoryBudget
from stars_engine.errors import StarsError, is_for_program
from stars_engine.problems import run_without_exits
from stars_engine.runtime.request_group import RequestGroup
from stars_engine.runtime.rollout_creation import check_memory_budget, check_token_ids, read_prompt
from stars_engine.runtime.unread_prompts import READ_FIRST
from stars_engine.threads.background_threads import BackgroundThreads


def read_prompts(
    group: RequestGroup,
    model: PromptedModel,
    background: BackgroundThreads,
    *,
    max_rows: int,
    budget: MemoryBudget,
    drop: Callable[[int], None],
) -> Iterator[Future[Any] | None]:
    """Read the prompts of a group one by one, so that a long list does not delay other requests.

    Each prompt becomes pending answers, or the error that it causes, whatever was raised.

    Args:
        group: The group.
        model: The language model, with its tokenizer.
        background: Prepares large prompts.
        max_rows: Maximum number of candidates in one step.
        budget: The memory of the engine, which each answer must fit alone.
        drop: Called with a number of rollouts that will not start.

    Yields:
        What the next prompt waits for; None if it can be read now.

    Raises:
        StarsError: The first error, unless errors are returned.
    """
    unread = group.unread
    unread.note_deadlines()
    index = len(group.resumed)
    for prompt_index, request in enumerate(group.prompts):
        error: StarsError | None = None
        if not unread.is_ended(prompt_index):
            try:
                reading = read_prompt(
                    group,
                    model,
                    background,
                    index=index,
                    prompt_index=prompt_index,
                    max_rows=max_rows,
                )
                prompt = yield from run_without_exits(reading)
                check_memory_budget(prompt.start, budget)
            except BaseException as raised:
                if is_for_program(raised) or isinstance(raised, GeneratorExit):
                    raise
                error = raised if isinstance(raised, StarsError) else model_failed(raised)
            if error is not None and not group.return_exceptions:
                raise error
        unread.note_read(request)
        if error is not None:
            group.fail_prompt(index, request.num_answers, error)
            drop(request.num_answers * max(1, group.num_samples))
        elif not unread.is_ended(prompt_index):  # as it may be by now
            group.pending.add(prompt)
        index += request.num_answers
        if not unread.may_start and unread.effort >= READ_FIRST:
            if not group.return_exceptions:
                _check_rest(group, model)
            unread.may_start = True
        yield None
    unread.may_start = True


def _check_rest(group: RequestGroup, model: PromptedModel) -> None:
    """Check what is quick to check of the prompts that are read after the first answers start.

    Raises:
        StarsError: A prompt exceeds a limit of the engine.
        ConfigError: A setting names tokens that the model does not have.
    """
    if group.refused:
        raise group.refused[min(group.refused)]
    rest = group.prompts[group.unread.num_prompts :]
    for sampling in {id(each.sampling): each.sampling for each in rest}.values():
        if sampling is not None:
            check_token_ids(sampling, model.vocab_size)
