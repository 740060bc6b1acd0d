"""What self-checks at load have in common: how many tokens they run, and what rounding is."""

from __future__ import annotations

from typing import Any

import torch

# Largest difference from plain passes taken for rounding, relative to the largest value.
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 6e-2}

_MAX_CHECKED = 512  # tokens; longer windows and chunks are not checked


def window_of(model: Any) -> int:
    """Return how many tokens a layer with a window or chunk sees; 0 if too many to check."""
    config = model.config.get_text_config()
    found = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return max((n for n in found if isinstance(n, int) and n <= _MAX_CHECKED), default=0)
