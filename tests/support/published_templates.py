"""Chat templates as published for their models."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from tests.support.chat_templates import Family, tokenizer_of_family

# Each with the format of its calls; None where the template has no tools.
PUBLISHED = {
    "cohere": None,
    "cohere2": None,
    "deepseekv3": None,
    "gemma": None,
    "gemma3": None,
    "glm4moe": "hermes",
    "gptoss": None,
    "lfm2": None,
    "llama3": None,
    "llama3_1": "llama",
    "llama3_2": "llama",
    "nemotron_3_nano": None,
    "phi3": None,
    "qwen2_5": "hermes",
    "qwen3": "hermes",
    "qwen3_instruct_2507": "hermes",
}
NO_SYSTEM = {"gemma"}
CONTROL = re.compile(r"<[|｜][^\s|｜<>]+[|｜]>|<[A-Za-z_/]+>|\[/?[A-Z_]+\]")


def template_of(name: str) -> str:
    """Return a template as published."""
    spec = find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "chat_templates" / f"{name}.jinja"
    return path.read_text(encoding="utf-8")


def published(name: str) -> PreTrainedTokenizerFast:
    """Return a tiny tokenizer with a template, and all its markers for control tokens."""
    template = template_of(name)
    control = dict.fromkeys(["<s>", "</s>", *CONTROL.findall(template)])
    return tokenizer_of_family(Family(template, tuple(control), "</s>"))
