"""Drafts of language models that are other people's code: checked before they become text."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from operator import index

from stars_engine.algorithm.candidate import Draft
from stars_engine.backends.base import DraftRequest, LanguageModel, Pause
from stars_engine.errors import GenerationError

_MAX_LEFT = 2**31  # tokens; a number that is converted to float


def checked_draft(
    draft: Draft | GenerationError, request: DraftRequest, model: LanguageModel
) -> Draft | GenerationError:
    """Return a draft with its ids as tuples of integers, or what is wrong with it.

    A custom language model may return anything, so its draft is checked before it is used as text.

    Args:
        draft: What `model` returned in answer to the request.
        request: The request.
        model: The language model.
    """
    if isinstance(draft, GenerationError):
        return draft
    try:
        checked = Draft(
            _plain_ids(draft.token_ids),
            _plain_ids(draft.lookahead_ids),
            tuple(draft.entropies),
            dict(draft.features),
            request.alternative,
        )
        problem = _problem_of(checked, request, model)
    except (AttributeError, TypeError) as error:
        problem = f"is not a Draft of token ids ({error})"
    if problem is None:
        return checked
    return GenerationError(
        f"the language model {type(model).__name__} returned a draft that {problem}. The request "
        "ends here; others are not affected. Hint: correct its `draft` method; "
        "stars_engine.testing.check_backend checks a language model"
    )


def checked_pause(pause: Pause) -> Pause:
    """Return what `draft_in_parts` of a custom language model yielded.

    Raises:
        TypeError: It is not a pause that the engine can read.
    """
    if (
        isinstance(pause, Pause)
        and isinstance(pause.num_left, int)
        and 0 <= pause.num_left <= _MAX_LEFT
        and (pause.waits_for is None or isinstance(pause.waits_for, Future))
    ):
        return pause
    raise TypeError(
        f"draft_in_parts yielded {pause!r:.200}, which is not a Pause with a number of tokens and "
        "a concurrent.futures.Future or None. Hint: yield Pause(num_left)"
    )


def _plain_ids(ids: Sequence[int]) -> tuple[int, ...]:
    if type(ids) is tuple and all(type(token) is int for token in ids):
        return ids
    return tuple(index(token) for token in ids)


def _problem_of(draft: Draft, request: DraftRequest, model: LanguageModel) -> str | None:
    ids, ahead, asked = draft.token_ids, draft.lookahead_ids, len(request.uniforms)
    whole = (*ids, *ahead)
    ends = (at for at, token in enumerate(whole) if model.is_end(token, request.sampling))
    if not 0 < len(ids) <= asked:
        problem = f"has {len(ids)} tokens where 1 to {asked} were asked for"
    elif ids[: len(request.forced)] != request.forced[: len(ids)]:
        problem = "does not begin with the tokens of DraftRequest.forced"
    elif len(ahead) > request.lookahead:
        problem = f"has {len(ahead)} tokens of lookahead where {request.lookahead} were asked for"
    elif min(whole) < 0 or max(whole) >= model.vocab_size:
        foreign = next(token for token in whole if not 0 <= token < model.vocab_size)
        problem = f"has the token id {foreign}, outside its vocabulary of {model.vocab_size}"
    elif (end := next(ends, len(whole) - 1)) < len(whole) - 1:
        problem = f"goes on after the end of text, its token {end}"
    elif len(ids) < asked and not model.is_end(whole[-1], request.sampling):
        problem = f"has {len(ids)} of {asked} tokens and does not end the text"
    elif request.entropies and len(draft.entropies) != len(ids):
        problem = f"has {len(draft.entropies)} entropies for {len(ids)} tokens"
    elif any(len(rows) != 1 + len(whole) for rows in draft.features.values()):
        problem = f"has features of other tokens than its {len(whole)} and the one before them"
    else:
        return None
    return problem
