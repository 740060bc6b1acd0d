"""Config files: plain values in YAML or JSON, and what is wrong with those that are none."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from stars_engine.errors import ConfigError, Problem

# Their keys are the caller's own: token ids, module names, devices.
_FREE_FIELDS = {"logit_bias", "model_kwargs", "device_map"}


def read_values(path: Path) -> dict[str, Any]:
    """Read the fields that a file holds.

    Raises:
        ConfigError: It is missing, unreadable, or holds something else.
    """
    check_suffix(path)
    load = json.loads if path.suffix == ".json" else yaml.safe_load
    try:
        values = load(path.read_text(encoding="utf-8"))
        if values is None:
            values = {}
        if not isinstance(values, dict):
            raise file_error(path, f"holds {type(values).__name__}, not a mapping of fields")
        _check_keys(path, values)
    except OSError as error:
        raise file_error(path, f"cannot be read: {error.strerror}; check the path") from None
    except RecursionError:
        raise file_error(path, "is nested too deeply, or within itself; write it flat") from None
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise file_error(path, f"is not valid {path.suffix[1:]}: {error}") from None
    return values


def write_values(path: Path, config: BaseModel) -> None:
    """Write a config's fields, all or nothing.

    Raises:
        ConfigError: The file cannot be written.
    """
    check_suffix(path)
    try:
        if path.suffix == ".json":
            text = config.model_dump_json(indent=2) + "\n"  # infinities as strings: JSON has none
        else:
            values = config.model_dump(mode="json")
            text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        data = text.encode()
    except ValueError as error:
        raise file_error(path, f"cannot be written: {error}; take that out") from None
    try:
        path.write_bytes(data)
    except OSError as error:
        raise file_error(path, f"cannot be written: {error.strerror}; check the path") from None


def find_object(value: Any) -> Any:
    """Return something in a nest of lists and mappings that no file gives back; else None."""
    if isinstance(value, list | dict):
        keys = [key for key in value if not isinstance(key, str)] if isinstance(value, dict) else []
        parts = value.values() if isinstance(value, dict) else value
        found = (find_object(part) for part in parts)
        return next((part for part in [*keys, *found] if part is not None), None)
    if isinstance(value, float):
        return None if math.isfinite(value) else value
    return None if isinstance(value, str | int | None) else value


def check_suffix(path: Path) -> None:
    """Check that the file is of a known kind.

    Raises:
        ConfigError: It is not.
    """
    if path.suffix not in (".json", ".yaml", ".yml"):
        raise file_error(path, f"ends in {path.suffix!r}; use .yaml, .yml or .json")


def file_error(path: Path, message: str) -> ConfigError:
    """Make the error of a file."""
    return ConfigError("StarsConfig file", [Problem(str(path), message)])


def _check_keys(path: Path, value: Any, trail: str = "") -> None:
    """Refuse keys that are no text (YAML reads 1, null and yes as other things) but for ids."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            _check_keys(path, item, f"{trail}.{index}")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                where = f" under {trail[1:]}" if trail else ""
                raise file_error(path, f"the key {key!r}{where} is no text; put it in quotes")
            if key not in _FREE_FIELDS:
                _check_keys(path, item, f"{trail}.{key}")
