"""The profile of a model, which LangChain's agents and middleware read."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from langchain_core.language_models import ModelProfile

from stars_engine import SamplingParams, StarsEngine, StarsError
from stars_engine.chat.formats import CLOSING
from stars_engine.chat.template import reads_variable

_BASE: ModelProfile = {
    "text_inputs": True,
    "text_outputs": True,
    "image_inputs": False,
    "audio_inputs": False,
    "video_inputs": False,
    "pdf_inputs": False,
    "tool_choice": True,
    # An answer follows tools or a schema, but cannot choose between them.
    "structured_output": False,
    "temperature": True,
}


def profile_of(engine: StarsEngine, sampling: Callable[[], SamplingParams]) -> ModelProfile:
    """Return the profile of a model, from its files, or from the model once it is loaded.

    Tool calls and reasoning are those that the chat template supports. If the files cannot be read,
    the profile has only what holds for all models.

    Args:
        engine: The engine of the model.
        sampling: Returns the sampling parameters of calls.
    """
    profile = _BASE.copy()
    with suppress(StarsError):
        facts, max_tokens = engine.facts, sampling().max_tokens
        profile["tool_calling"] = reads_variable(facts.template, "tools")
        profile["reasoning_output"] = CLOSING in facts.template
        if facts.context_len is not None:
            profile["max_input_tokens"] = facts.context_len
            profile["max_output_tokens"] = min(max_tokens, facts.context_len)
    return profile
