"""How many tokens an engine's requests may come to, by its settings and what its model keeps."""

from __future__ import annotations

from stars_engine.config import EngineParams
from stars_engine.memory import KeepsCache

# Of the memory that slots take, what is in them at least: they are longer than their texts.
_FILLED = 0.6


def most_tokens(params: EngineParams, model: object) -> int | None:
    """Return how many tokens prompts and answers in progress may be together; None for any number.

    Args:
        params: The settings.
        model: The language model, loaded.
    """
    limits = [] if params.max_prefix_tokens is None else [params.max_prefix_tokens]
    if params.max_cache_bytes is not None and isinstance(model, KeepsCache):
        bytes_per_token = model.bytes_per_token
        if bytes_per_token:
            limits.append(int(params.max_cache_bytes * _FILLED) // bytes_per_token)
    return min(limits, default=None)
