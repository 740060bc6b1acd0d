"""How many tokens a model reads at most."""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger(__name__)


def context_len(config: Any, tokenizer: Any) -> int | None:
    """Return the context length of a model, or None if it has no limit.

    LongRoPE has two sets of rotary factors and chooses by the longest row of a forward pass. Beyond
    the boundary, a text would depend on batch composition, and cached keys would belong to the
    other set, so the context ends at the boundary. ("dynamic" factors change beyond
    max_position_embeddings, which is the limit in any case.)
    """
    text_config = config.get_text_config()
    limit = _declared_len(text_config, tokenizer)
    border = _longrope_border(text_config)
    if border is None or (limit is not None and limit <= border):
        return limit
    logger.warning(
        "%s reads at most %d tokens instead of %s, because its rotary factors change beyond that "
        "for all rows of a batch",
        getattr(config, "model_type", "the model"),
        border,
        limit,
    )
    return border


def _declared_len(text_config: Any, tokenizer: Any) -> int | None:
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        value = getattr(text_config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    limit = getattr(tokenizer, "model_max_length", None)
    return limit if isinstance(limit, int) and limit < 10**9 else None


def _longrope_border(text_config: Any) -> int | None:
    """Return the length beyond which rotary factors depend on the longest row, or None.

    LongRoPE has two sets of factors; dynamic factors grow with the text.
    """
    given = getattr(text_config, "rope_parameters", None)
    given = given or getattr(text_config, "rope_scaling", None)
    if not isinstance(given, dict):
        return None
    # One set of parameters, or one for each type of layer.
    sets = [given, *(value for value in given.values() if isinstance(value, dict))]
    fallback = getattr(text_config, "original_max_position_embeddings", None)
    borders = [
        one.get("original_max_position_embeddings", fallback)
        for one in sets
        if one.get("rope_type", one.get("type")) in ("longrope", "su", "dynamic")
    ]
    return min((border for border in borders if isinstance(border, int)), default=None)
