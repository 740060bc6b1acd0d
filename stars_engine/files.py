"""Files of config objects: plain values in YAML or JSON, or else what is wrong with them."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel

from stars_engine.disk import file_error, shown_path, why_not, write_file
from stars_engine.errors import ConfigError, Problem
from stars_engine.masking import redact
from stars_engine.schema import Schema

# Their keys are the caller's own: token ids, module names, devices.
_FREE_FIELDS = {"logit_bias", "model_kwargs", "device_map"}


class Filed(Schema):
    """A config object that has files of its own."""

    @classmethod
    def from_file(cls, path: str | Path, *, allow_imports: bool = True) -> Self:
        """Read a `.yaml`, `.yml` or `.json` file.

        Args:
            path: The file.
            allow_imports: Whether it may name Python code to run: a callable as
                'package.module:name', which is imported when it is first used, or that of a
                checkpoint by `trust_remote_code`. False is for files of others; nothing is
                imported while they are read and checked.

        Raises:
            ConfigError: The file is missing or unreadable, a field is not valid, or the file names
                code and may not.
        """
        found = cls.model_validate(read_values(Path(path), cls.__name__))
        if not allow_imports:
            refuse_imports(f"{cls.__name__} file {shown_path(path)}", found)
        return found

    def to_file(self, path: str | Path) -> None:
        """Write a file that `from_file` reads back to an equal object.

        Raises:
            ConfigError: It holds what no file can, the suffix is not known, or there is no writing.
        """
        path, title = Path(path), type(self).__name__
        check_suffix(path, title)
        problems = list(self._unwritable())
        if problems:
            raise ConfigError(title, problems)
        write_values(path, self)

    def _unwritable(self) -> Iterable[Problem]:
        """Find what no file can hold."""
        return ()


def refuse_imports(title: str, config: Schema) -> None:
    """Check that a config names no Python code to run.

    Args:
        title: Where it comes from, for messages.
        config: The config.

    Raises:
        ConfigError: It does.
    """
    problems = [
        Problem(
            field,
            f"{value!r} runs Python code, and imports are not allowed here. Cure: take it out, or "
            "allow imports if you trust whoever wrote it",
        )
        for field, value in _code_in(config)
    ]
    if problems:
        raise ConfigError(title, problems)


def _code_in(value: Any, trail: str = "") -> Iterator[tuple[str, Any]]:
    """Find what runs code when it is used; live objects are the caller's own."""
    if isinstance(value, Schema):
        for name in type(value).model_fields:
            part, where = getattr(value, name), f"{trail}.{name}".lstrip(".")
            is_name = name == "function" and isinstance(part, str)
            if is_name or (name == "trust_remote_code" and part is True):
                yield where, part
            else:
                yield from _code_in(part, where)
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from _code_in(part, f"{trail}.{name}")
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _code_in(part, f"{trail}.{index}")


def read_values(path: Path, title: str) -> dict[str, Any]:
    """Read the fields that a file holds.

    Args:
        path: The file, `.yaml`, `.yml` or `.json`.
        title: What it should hold, for messages.

    Raises:
        ConfigError: It is missing, unreadable, or holds something else.
    """
    check_suffix(path, title)
    load = json.loads if path.suffix == ".json" else yaml.safe_load
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # a name may be one that no file has
        raise file_error(path, title, f"cannot be read: {why_not(error)}") from None
    try:
        values = load(data.decode())
        if values is None:
            values = {}
        if not isinstance(values, dict):
            raise file_error(path, title, f"holds {type(values).__name__}, not a mapping of fields")
        _check_keys(path, title, values)
    except RecursionError:
        message = "is nested too deeply, or within itself; write it flat"
        raise file_error(path, title, message) from None
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise file_error(
            path, title, f"is not valid {path.suffix[1:]}: {redact(str(error))}"
        ) from None
    return values


def write_values(path: Path, config: BaseModel) -> None:
    """Write an object's fields, all or nothing.

    Raises:
        ConfigError: The file cannot be written.
    """
    title = type(config).__name__
    check_suffix(path, title)
    try:
        data = text_of(config, path.suffix).encode()
    except ValueError as error:
        raise file_error(path, title, f"cannot be written: {error}; take that out") from None
    write_file(path, data, title)


def text_of(config: BaseModel, suffix: str = ".yaml") -> str:
    """Return an object's fields as the text of a file.

    Args:
        config: The object.
        suffix: Of the file: `.json`, or one of YAML.
    """
    if suffix == ".json":
        return config.model_dump_json(indent=2) + "\n"  # infinities as strings: JSON has none
    values = config.model_dump(mode="json")
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


class _Dumper(yaml.SafeDumper):
    """Writes text with other than visible characters in it escaped, in double quotes.

    YAML folds more than newlines (U+0085, U+2028, U+2029), and lets no reader see some others.
    """


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


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


def check_suffix(path: Path, title: str) -> None:
    """Check that the file is of a known kind.

    Raises:
        ConfigError: It is not.
    """
    if path.suffix not in (".json", ".yaml", ".yml"):
        raise file_error(path, title, f"ends in {path.suffix!r}; use .yaml, .yml or .json")


def check_writable(path: Path, title: str) -> None:
    """Check, before long work, that its result can be written; writes nothing.

    Raises:
        ConfigError: It cannot.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        mode = None
    except (OSError, ValueError) as error:
        raise file_error(path, title, f"cannot be written: {why_not(error)}") from None
    if mode is not None and stat.S_ISDIR(mode):
        raise file_error(path, title, "is a directory; give a file in it")
    if mode is not None and not stat.S_ISREG(mode):
        return  # a pipe or a terminal is written to directly
    folder = path.absolute().parent if mode is None else path.resolve().parent
    if not folder.is_dir():
        raise file_error(path, title, f"there is no directory {folder}; make it, or take another")
    # A file is replaced by a new one that is written beside it.
    if not (os.access(folder, os.W_OK | os.X_OK) and (mode is None or os.access(path, os.W_OK))):
        raise file_error(path, title, "cannot be written: no permission; take another path")


def _check_keys(path: Path, title: str, value: Any, trail: str = "") -> None:
    """Refuse keys that are no text (YAML reads 1, null and yes as other things) but for ids."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            _check_keys(path, title, item, f"{trail}.{index}")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                where = f" under {trail[1:]}" if trail else ""
                message = f"the key {key!r}{where} is no text; put it in quotes"
                raise file_error(path, title, message)
            if key not in _FREE_FIELDS:
                _check_keys(path, title, item, f"{trail}.{key}")
