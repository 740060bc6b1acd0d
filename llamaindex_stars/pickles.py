"""Copies in other processes, which cannot have the live objects of this one."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any

from stars_engine import ConfigError
from stars_engine.errors import Problem


@dataclass(frozen=True)
class LeftBehind:
    """Stands for a live object that cannot be pickled.

    Attributes:
        field: The field that held it.
        reason: Why it cannot be pickled.
    """

    field: str
    reason: str


def left_behind_if_live(field: str, value: Any) -> Any:
    """Return a value, or what stands for it if it cannot be pickled."""
    try:
        pickle.dumps(value)
    except Exception as error:  # noqa: BLE001 - of third-party objects
        return LeftBehind(field, str(error))
    return value


def refuse_left_behind(value: Any) -> None:
    """Refuse what stands for a live object of another process.

    Raises:
        ConfigError: The value is such a placeholder.
    """
    if isinstance(value, LeftBehind):
        message = (
            f"it cannot be pickled, so this copy does not have it ({value.reason}). Hint: give "
            "models by name, and a callable as FunctionReward(function='module:name')"
        )
        raise ConfigError("StarsLLM", [Problem(value.field, message)])
