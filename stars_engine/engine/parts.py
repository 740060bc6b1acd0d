"""The models of an engine as they were passed: checks, and names."""

from __future__ import annotations

from collections.abc import Mapping

from stars_engine.config import StarsConfig
from stars_engine.errors import ConfigError, Problem


def check_parts(config: object, **objects: object) -> None:
    """Refuse names of models, which belong in the config.

    Raises:
        ConfigError: An argument is of another type.
    """
    names = {name: value for name, value in objects.items() if isinstance(value, str)}
    if isinstance(config, StarsConfig) and not names:
        return
    field, value = next(iter(names.items()), ("config", config))
    hint = "use StarsConfig(model=..., reward=...), or StarsConfig.from_file(path)"
    if names:
        hint = f"names belong in the config: StarsEngine(StarsConfig({field}={value!r}, ...))"
    message = f"{value!r} is not allowed; a name is no object. Hint: {hint}"
    if not names:
        message = f"{type(config).__name__} is not allowed; allowed: a StarsConfig. Hint: {hint}"
    raise ConfigError("StarsEngine", [Problem(field, message)])


def part_names(config: StarsConfig, objects: Mapping[str, object]) -> dict[str, str]:
    """Return the names of both models; an object that replaces one is named by its class.

    Args:
        config: The config.
        objects: What replaces the config's `model` and `reward`; None replaces nothing.
    """
    own = {name: type(each).__name__ for name, each in objects.items() if each is not None}
    return {"model": config.model.shown_name, "reward": config.reward.shown_name, **own}
