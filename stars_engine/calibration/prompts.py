"""Pilot prompts of our own writing, for those who bring none."""

from __future__ import annotations

from importlib import resources
from random import Random

from stars_engine.calibration.host import Host


def neutral_prompts(*, chat: bool, seed: int = 0) -> list[str]:
    """Return the prompts inside the package in an order given by a seed.

    Args:
        chat: Questions and requests; otherwise beginnings of texts, for models that only go on.
        seed: Of the order.
    """
    name = "requests.txt" if chat else "openings.txt"
    text = (resources.files("stars_engine") / "calibration" / name).read_text(encoding="utf-8")
    prompts = [line for line in text.splitlines() if line]
    Random(seed).shuffle(prompts)
    return prompts


def speaks_chat(engine: Host) -> bool:
    """Return whether a string prompt is a user turn to this engine."""
    form = engine.config.prompt_format
    return form == "chat" or (form == "auto" and engine.has_chat_template)
