"""Pilot prompts of our own writing, for those who bring none."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from random import Random

from stars_engine.calibration.host import Host
from stars_engine.errors import ConfigError, Problem
from stars_engine.messages import Chat
from stars_engine.types import Prompt, RenderedPrompt, TokenIds

_KINDS = (str, Chat, TokenIds, RenderedPrompt)


def checked_prompts(title: str, prompts: object, *, least: int = 1) -> list[Prompt]:
    """Return pilot prompts as a list, one for each rollout there will be.

    Args:
        title: Who asks for them, for messages.
        prompts: What a caller gave.
        least: How many are needed.

    Raises:
        ConfigError: They are no sequence of prompts, or too few.
    """

    def problem(message: str) -> ConfigError:
        return ConfigError(title, [Problem("prompts", message)])

    allowed = "a list of str, Chat, TokenIds or RenderedPrompt"
    if isinstance(prompts, _KINDS):
        raise problem(
            f"one {type(prompts).__name__} is not allowed; {allowed}. Cure: give many, "
            "prompts=[..., ...], like those of later use"
        )
    if not isinstance(prompts, Sequence):
        raise problem(f"{type(prompts).__name__} is not allowed; {allowed}. Cure: list(...)")
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, _KINDS):
            raise problem(
                f"{type(prompt).__name__} at index {index} is not allowed; {allowed}. Cure: wrap "
                "each, TokenIds([...]) for token ids, Chat([...]) for role dicts"
            )
    if len(prompts) < least:
        raise problem(f"{len(prompts)} is not allowed; at least {least} prompts; better 100")
    return list(prompts)


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
