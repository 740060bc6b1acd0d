"""A look at what drafts of a few numbers of rows cost, before the first round that may choose."""

from __future__ import annotations

import logging
import time

from stars_engine.backends.base import DraftRequest, LanguageModel
from stars_engine.config import SamplingParams
from stars_engine.errors import GenerationError

logger = logging.getLogger(__name__)

_NUM_ROWS = (1, 2, 4, 8, 16)
_NUM_PROMPT_TOKENS = 64
_NUM_TOKENS = 4  # of each draft
_NUM_REPEATS = 2  # the quicker one counts
_BUDGET_S = 2.0  # for all of it


def probe_costs(model: LanguageModel, max_rows: int | None = None) -> dict[int, float]:
    """Time short drafts of 1, 2, 4, 8 and 16 rows on a prefix of no meaning.

    No randomness is used, and nothing of it is kept but what a prefix of 64 tokens leaves in the
    model's cache until others need the room. Numbers that would take it beyond two seconds
    are left out, as far as can be told from those before.

    Args:
        model: Drafts; if it fails here, what was timed so far is what there is.
        max_rows: Rows at most.

    Returns:
        Seconds of a draft by its number of rows.
    """
    found: dict[int, float] = {}
    try:
        _fill(found, model, max_rows)
    except Exception:  # a round that fails likewise says so
        logger.debug("costs of rounds could not be probed", exc_info=True)
    return found


def _fill(found: dict[int, float], model: LanguageModel, max_rows: int | None) -> None:
    room = _NUM_PROMPT_TOKENS + _NUM_TOKENS
    if model.context_len is not None:
        room = min(room, model.context_len)
    num_tokens = min(_NUM_TOKENS, room - 1)
    ends_s = time.perf_counter() + _BUDGET_S
    prompt = [index % model.vocab_size for index in range(room - num_tokens)]
    request = DraftRequest(prompt, len(prompt), (0.5,) * num_tokens, SamplingParams())
    last_s = _time(model, [request])  # with whatever is done once only
    for num_rows in _NUM_ROWS:
        if max_rows is not None and num_rows > max_rows:
            return
        for _ in range(_NUM_REPEATS):
            if time.perf_counter() + last_s > ends_s:
                return
            last_s = _time(model, [request] * num_rows)
            found[num_rows] = min(found.get(num_rows, last_s), last_s)
        last_s *= 2  # of twice as many rows at most


def _time(model: LanguageModel, requests: list[DraftRequest]) -> float:
    """Return the seconds of a draft.

    Raises:
        GenerationError: Nothing can be drafted.
        ValueError: The text ended early, so the time tells nothing.
    """
    started_s = time.perf_counter()
    drafts = model.draft(requests)
    seconds = time.perf_counter() - started_s
    for draft, request in zip(drafts, requests, strict=True):
        if isinstance(draft, GenerationError):
            raise draft
        if len(draft.token_ids) < len(request.uniforms):
            raise ValueError("a draft of the probe ended early")
    return seconds
