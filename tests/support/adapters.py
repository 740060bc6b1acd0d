"""A prompt and the settings that tests of all adapters use."""

from __future__ import annotations

PROMPT = "The acting in this movie"
SETTINGS = {"max_tokens": 32, "seed": 7}
FIELDS = {**SETTINGS, "num_candidates": 4}  # "auto" depends on measured speed
