"""Build a config from keyword arguments with the field names of its parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from stars_engine.config.align import AlignParams
from stars_engine.config.engine import EngineParams
from stars_engine.config.root import StarsConfig
from stars_engine.config.sampling import SamplingParams
from stars_engine.errors import HINT, ConfigError, Problem
from stars_engine.near_names import near_name
from stars_engine.redaction import MASK, masked, redact, resembles_secret_name
from stars_engine.schema import Schema

ROOT_FIELDS = frozenset({"model", "reward", "prompt_format", "chat_template_kwargs"})
PARTS: dict[str, type[Schema]] = {
    "sampling": SamplingParams,
    "align": AlignParams,
    "engine": EngineParams,
}
# Variables of published chat templates that users may take for settings.
_OF_TEMPLATES = ("enable_thinking", "thinking", "thinking_budget", "reasoning_effort", "documents")
# Settings of schedules that users may take for settings of a call.
_SCHEDULES = {
    "threshold": "ConstantSchedule(value=...)",
    "target": "LinearSchedule(target=...)",
    "budget": "AutoSchedule(budget=...)",
}
# Settings that a call of the engine takes elsewhere.
_OF_CALLS = {
    "preset": "use align=..., which takes the name of a preset",
    "messages": "a conversation is a prompt; use Chat([...])",
    "tools": "tools belong to a conversation; use Chat([...], tools=...)",
    "tool_choice": "tools belong to a conversation; use Chat([...], tools=..., tool_choice=...)",
}
# Parts of a config, which objects that take single fields do not have.
_OF_CONFIGS = {
    "align": "use config=StarsConfig(align=...), or single fields of AlignParams",
    "preset": "use config=StarsConfig(align=...), which takes the name of a preset",
    "sampling": "use config=StarsConfig(sampling=...), or single fields of SamplingParams",
}
FLAT_FIELDS = ROOT_FIELDS.union(*(part.model_fields for part in PARTS.values()))


def with_fields(config: StarsConfig, fields: Mapping[str, Any], *, owner: str) -> StarsConfig:
    """Return a copy of a config with changed fields of its parts, given by field name.

    Args:
        config: The config to change.
        fields: Values by field name: `model`, `reward`, `prompt_format`, `chat_template_kwargs`,
            and every field of `SamplingParams`, `AlignParams` and `EngineParams`.
        owner: The object that has these fields, for messages.

    Raises:
        ConfigError: A name is unknown, or a value is not allowed.
    """
    check_names(fields, owner=owner)
    changes: dict[str, Any] = {name: fields[name] for name in fields if name in ROOT_FIELDS}
    for part, kind in PARTS.items():
        given = {name: fields[name] for name in fields if name in kind.model_fields}
        if given:
            current = getattr(config, part)
            if current == "model":
                raise ConfigError(
                    owner,
                    [
                        Problem(
                            next(iter(given)),
                            "the config has sampling='model', which sampling fields cannot change. "
                            "Hint: set sampling=SamplingParams(...) in the config, or remove this "
                            "field",
                        )
                    ],
                )
            # The thresholds of the embedded pair do not apply to other models.
            foreign = part == "align" and "align" not in config.model_fields_set
            if foreign and changes.keys() & {"model", "reward"}:
                current = kind()
            changes[part] = current.replace(**given)
    return config.replace(**changes) if changes else config


def check_names(
    fields: Mapping[str, Any], *, owner: str, parts: Iterable[type[Schema]] | None = None
) -> None:
    """Check that all names are fields of a config or its parts.

    Args:
        fields: Values by field name.
        owner: The object that has these fields, for messages.
        parts: The parts; None: the config and all its parts.

    Raises:
        ConfigError: A name is unknown; the message suggests the closest one.
    """
    known = FLAT_FIELDS if parts is None else {name for part in parts for name in part.model_fields}
    problems = []
    for name in fields:
        if name not in known:
            near = near_name(name, known)
            value = fields[name]
            is_secret = resembles_secret_name(name)
            if isinstance(value, int) and near and get_close_matches(name, [near], 1, 0.9):
                is_secret = resembles_secret_name(near)  # `max_token` means `max_tokens`
            shown = MASK if is_secret else repr(masked(value))
            said = f"unknown field with the value {redact(shown[:80])}"
            hint = (_OF_CONFIGS if parts is None else _OF_CALLS).get(name)
            if name in _OF_TEMPLATES:
                hint = f"for the chat template, use chat_template_kwargs={{{name!r}: ...}}"
            elif name in _SCHEDULES:
                hint = f"use schedule={_SCHEDULES[name]}"
            elif hint is None and near:
                hint = f"did you mean `{near}`?"
            elif hint is None:
                said += f"; known fields: {', '.join(sorted(known))}"
                hint = "remove it, or use one of these"
            problems.append(Problem(name, f"{said}. {HINT}{hint}"))
    if problems:
        raise ConfigError(owner, problems)
