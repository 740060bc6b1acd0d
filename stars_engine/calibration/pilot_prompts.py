"""Pilot prompts: check the caller's prompts, or load the neutral set of the package."""

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
    """Return pilot prompts as a list.

    Args:
        title: Name of the calling function, for error messages.
        prompts: The caller's argument.
        least: Minimum number of prompts.

    Raises:
        ConfigError: The argument is not a sequence of prompts, or has too few.
    """

    def problem(message: str) -> ConfigError:
        return ConfigError(title, [Problem("prompts", message)])

    allowed = "a list of str, Chat, TokenIds or RenderedPrompt"
    if isinstance(prompts, _KINDS):
        raise problem(
            f"a single {type(prompts).__name__} is not allowed; allowed: {allowed}. Hint: give "
            "several prompts similar to those of later use, prompts=[..., ...]"
        )
    if not isinstance(prompts, Sequence):
        kind = type(prompts).__name__
        raise problem(f"{kind} is not allowed; allowed: {allowed}. Hint: use list(...)")
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, _KINDS):
            raise problem(
                f"{type(prompt).__name__} at index {index} is not allowed; allowed: {allowed}. "
                "Hint: use TokenIds([...]) for token ids and Chat([...]) for role dicts"
            )
    if len(prompts) < least:
        raise problem(
            f"{len(prompts)} is not allowed; allowed: {least} or more. Hint: give about 100 prompts"
        )
    return list(prompts)


def neutral_prompts(*, chat: bool, seed: int = 0) -> list[str]:
    """Return the prompts of the package, shuffled by a seed.

    Args:
        chat: Whether to return questions and requests; otherwise beginnings of texts, for base
            models.
        seed: Seed of the order.
    """
    name = "requests.txt" if chat else "openings.txt"
    text = (resources.files("stars_engine") / "calibration" / name).read_text(encoding="utf-8")
    prompts = [line for line in text.splitlines() if line]
    Random(seed).shuffle(prompts)
    return prompts


def uses_chat_format(engine: Host) -> bool:
    """Return whether the engine reads a string prompt as a user message."""
    form = engine.config.prompt_format
    return form == "chat" or (form == "auto" and engine.has_chat_template)
