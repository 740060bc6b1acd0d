"""Config files: read and write config objects as YAML or JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel

from stars_engine.errors import ConfigError, Problem
from stars_engine.schema import Schema

# Fields whose keys are not field names: token ids, module names, devices.
_FREE_FIELDS = {"logit_bias", "model_kwargs", "device_map"}


class Filed(Schema):
    """A config object that can be read from and written to a file."""

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a `.yaml`, `.yml` or `.json` file.

        Raises:
            ConfigError: The file is missing or unreadable, or a field is not valid.
        """
        return cls.model_validate(read_values(Path(path), cls.__name__))

    def to_file(self, path: str | Path) -> None:
        """Write a file from which `from_file` reads an equal object.

        Raises:
            ConfigError: A value cannot be written to a file, the suffix is unknown, or the file
               cannot be written.
        """
        path, title = Path(path), type(self).__name__
        check_suffix(path, title)
        problems = list(self._unwritable())
        if problems:
            raise ConfigError(title, problems)
        write_values(path, self)

    def _unwritable(self) -> Iterable[Problem]:
        """Return a problem for each value that cannot be written to a file."""
        return ()


def read_values(path: Path, title: str) -> dict[str, Any]:
    """Read the fields from a file.

    Args:
        path: The file, `.yaml`, `.yml` or `.json`.
        title: The name of the expected object, for error messages.

    Raises:
        ConfigError: The file is missing or unreadable, or is not a mapping of fields.
    """
    check_suffix(path, title)
    load = json.loads if path.suffix == ".json" else yaml.safe_load
    try:
        values = load(path.read_text(encoding="utf-8"))
        if values is None:
            values = {}
        if not isinstance(values, dict):
            raise file_error(path, title, f"holds {type(values).__name__}, not a mapping of fields")
        _check_keys(path, title, values)
    except OSError as error:
        message = f"cannot be read: {error.strerror}; check the path"
        raise file_error(path, title, message) from None
    except RecursionError:
        message = "is nested too deeply, or within itself; write it flat"
        raise file_error(path, title, message) from None
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise file_error(path, title, f"is not valid {path.suffix[1:]}: {error}") from None
    return values


def write_values(path: Path, config: BaseModel) -> None:
    """Write the fields of an object; write nothing if one of them cannot be serialized.

    Raises:
        ConfigError: The file cannot be written.
    """
    title = type(config).__name__
    check_suffix(path, title)
    try:
        if path.suffix == ".json":
            text = config.model_dump_json(indent=2) + "\n"  # infinities as strings, for JSON
        else:
            values = config.model_dump(mode="json")
            text = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
        data = text.encode()
    except ValueError as error:
        raise file_error(path, title, f"cannot be written: {error}; take that out") from None
    try:
        path.write_bytes(data)
    except OSError as error:
        message = f"cannot be written: {error.strerror}; check the path"
        raise file_error(path, title, message) from None


class _Dumper(yaml.SafeDumper):
    """Writes strings with unprintable characters in double quotes, with escapes.

    YAML folds more line breaks than newlines (U+0085, U+2028, U+2029), and other characters would
    be invisible.
    """


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def find_object(value: Any) -> Any:
    """Return a value inside lists and mappings that a file would not preserve, or None."""
    if isinstance(value, list | dict):
        keys = [key for key in value if not isinstance(key, str)] if isinstance(value, dict) else []
        parts = value.values() if isinstance(value, dict) else value
        found = (find_object(part) for part in parts)
        return next((part for part in [*keys, *found] if part is not None), None)
    if isinstance(value, float):
        return None if math.isfinite(value) else value
    return None if isinstance(value, str | int | None) else value


def check_suffix(path: Path, title: str) -> None:
    """Check the suffix of a file.

    Raises:
        ConfigError: The suffix is unknown.
    """
    if path.suffix not in (".json", ".yaml", ".yml"):
        raise file_error(path, title, f"ends in {path.suffix!r}; use .yaml, .yml or .json")


def check_writable(path: Path, title: str) -> None:
    """Check that a file can be written, before long work; does not write it.

    Raises:
        ConfigError: The file cannot be written.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise file_error(
            path, title, f"directory {folder} does not exist; create it or use another"
        )
    if path.is_dir():
        raise file_error(path, title, "is a directory; give the path of a file")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise file_error(path, title, "cannot be written: permission denied; use another path")


def file_error(path: Path, title: str, message: str) -> ConfigError:
    """Return the error for a file."""
    return ConfigError(f"{title} file", [Problem(str(path), message)])


def _check_keys(path: Path, title: str, value: Any, trail: str = "") -> None:
    """Refuse keys that are not strings (YAML parses 1, null and yes), except in free fields."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            _check_keys(path, title, item, f"{trail}.{index}")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                where = f" under {trail[1:]}" if trail else ""
                message = f"the key {key!r}{where} is not a string; put it in quotes"
                raise file_error(path, title, message)
            if key not in _FREE_FIELDS:
                _check_keys(path, title, item, f"{trail}.{key}")
