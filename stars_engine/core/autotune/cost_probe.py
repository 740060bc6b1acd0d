"""Measure the cost of drafts by batch size, before the first step that has a choice."""

from __future__ import annotations

import logging
import time

from stars_engine.backends.base import DraftRequest, LanguageModel
from stars_engine.config import SamplingParams
from stars_engine.errors import GenerationError, is_for_program

logger = logging.getLogger(__name__)

_NUM_ROWS = (1, 2, 4, 8, 16)
_NUM_PROMPT_TOKENS = 64
_NUM_TOKENS = 4  # per draft
_NUM_REPEATS = 2  # the faster one counts
_BUDGET_S = 2.0  # for the whole probe


def probe_costs(model: LanguageModel, max_rows: int | None = None) -> dict[int, float]:
    """Time short drafts of 1, 2, 4, 8 and 16 rows on an arbitrary prefix.

    The probe uses no randomness. It leaves a prefix of 64 tokens in the model's cache, which is
    evicted when space is needed. Batch sizes that would take it beyond two seconds are skipped, as
    far as the smaller ones predict.

    Args:
        model: The language model. If it fails, the measurements so far are returned.
        max_rows: Maximum number of rows.

    Returns:
        Seconds per draft, by the number of rows.
    """
    found: dict[int, float] = {}
    try:
        _measure(found, model, max_rows)
    except BaseException as error:  # a step that fails the same way reports it
        if is_for_program(error):
            raise
        logger.debug("Measuring the cost of drafts failed", exc_info=True)
    return found


def _measure(found: dict[int, float], model: LanguageModel, max_rows: int | None) -> None:
    room = _NUM_PROMPT_TOKENS + _NUM_TOKENS
    if model.context_len is not None:
        room = min(room, model.context_len)
    num_tokens = min(_NUM_TOKENS, room - 1)
    ends_s = time.perf_counter() + _BUDGET_S
    prompt = [index % model.vocab_size for index in range(room - num_tokens)]
    request = DraftRequest(prompt, len(prompt), (0.5,) * num_tokens, SamplingParams())
    last_s = _time(model, [request])  # warm-up
    for num_rows in _NUM_ROWS:
        if max_rows is not None and num_rows > max_rows:
            return
        for _ in range(_NUM_REPEATS):
            if time.perf_counter() + last_s > ends_s:
                return
            last_s = _time(model, [request] * num_rows)
            found[num_rows] = min(found.get(num_rows, last_s), last_s)
        last_s *= 2  # an upper bound for twice as many rows


def _time(model: LanguageModel, requests: list[DraftRequest]) -> float:
    """Return the duration of a draft in seconds.

    Raises:
        GenerationError: Drafting failed.
        ValueError: The text ended early, so the duration means nothing.
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
