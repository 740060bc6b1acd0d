"""Config files: read and write config objects as YAML or JSON."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel

from stars_engine.files.disk import file_error, shown_path, why_not, write_file
from stars_engine.files.parsing import parse_json, parse_yaml
from stars_engine.problems import ConfigError, Problem
from stars_engine.redaction import redact
from stars_engine.schema import Schema

# Fields whose keys are not field names: token ids, module names, devices.
_FREE_FIELDS = {"logit_bias", "model_kwargs", "device_map"}


# Arguments of vllm.LLM that name Python code.
_CODE_ARGUMENTS = ("trust_remote_code", "logits_processors", "hf_overrides", "inductor_passes")
_CODE_ENDINGS = ("_cls", "_class", "_plugin", "_module_path")
_BACKENDS = ("distributed_executor_backend", "backend")  # code if their names have a dot


class Filed(Schema):
    """A config object that can be read from and written to a file."""

    @classmethod
    def from_file(cls, path: str | Path, *, allow_imports: bool = True) -> Self:
        """Read a `.yaml`, `.yml` or `.json` file.

        Args:
            path: The file.
            allow_imports: Whether the file may name Python code to run: a callable as
                'package.module:name', which is imported when it is first used, or the code of a
                checkpoint with `trust_remote_code`. Use False for files that you do not trust;
                nothing is imported while they are read and validated.

        Raises:
            ConfigError: The file is missing or unreadable, a field is invalid, or the file names
                code although `allow_imports` is False.
        """
        found = cls.model_validate(read_values(Path(path), cls.__name__))
        if not allow_imports:
            refuse_imports(f"{cls.__name__} file {shown_path(path)}", found)
        return found

    def to_file(self, path: str | Path) -> None:
        """Write a file from which `from_file` reads an equal object.

        Raises:
            ConfigError: A value cannot be written to a file, the suffix is unknown, or the file
                cannot be written.
        """
        path, title = Path(path), type(self).__name__
        check_suffix(path, title)
        problems = list(self.unwritable())
        if problems:
            raise ConfigError(title, problems)
        write_values(path, self)

    def unwritable(self) -> Iterator[Problem]:
        """Return a problem for each value that cannot be written to a file."""
        return iter(())


def refuse_imports(title: str, config: Schema) -> None:
    """Check that a config does not name Python code to run.

    Args:
        title: The source of the config, for error messages.
        config: The config.

    Raises:
        ConfigError: It names code.
    """
    problems = [
        Problem(
            field,
            f"{value!r} runs Python code, and imports are not allowed here. Hint: remove it, or "
            "allow imports if you trust the author",
        )
        for field, value in _code_in(config)
    ]
    if problems:
        raise ConfigError(title, problems)


def _code_in(value: Any, trail: str = "") -> Iterator[tuple[str, Any]]:
    """Yield fields that run code when they are used; live objects belong to the caller."""
    if isinstance(value, Schema):
        for name in type(value).model_fields:
            part, where = getattr(value, name), f"{trail}.{name}".lstrip(".")
            is_name = name in ("function", "guardrail") and isinstance(part, str)
            if is_name or (name == "trust_remote_code" and part is True):
                yield where, part
            elif name == "engine_kwargs":
                yield from _code_in_arguments(part, where)
            else:
                yield from _code_in(part, where)
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from _code_in(part, f"{trail}.{name}")
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _code_in(part, f"{trail}.{index}")


def _code_in_arguments(arguments: Mapping[str, Any], trail: str) -> Iterator[tuple[str, Any]]:
    """Yield arguments of vLLM, at any depth, that it imports or that let a checkpoint run code."""
    for name, value in arguments.items():
        where, word = f"{trail}.{name}", str(name).replace("-", "_")
        is_name = word.endswith(_CODE_ENDINGS) or (word in _BACKENDS and "." in str(value))
        if value and (word in _CODE_ARGUMENTS or is_name):
            yield where, value
            continue
        parts = enumerate(value) if isinstance(value, list | tuple) else [("", value)]
        for index, part in parts:
            if isinstance(part, Mapping):
                yield from _code_in_arguments(part, f"{where}.{index}".rstrip("."))


def read_values(path: Path, title: str) -> dict[str, Any]:
    """Read the fields from a file.

    Args:
        path: The file, `.yaml`, `.yml` or `.json`.
        title: The name of the expected object, for error messages.

    Raises:
        ConfigError: The file is missing or unreadable, or is not a mapping of fields.
    """
    check_suffix(path, title)
    parse = parse_json if path.suffix == ".json" else parse_yaml
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # a ValueError is an invalid file name
        raise file_error(path, title, f"cannot be read: {why_not(error)}") from None
    try:
        values = parse(data.decode("utf-8-sig"))  # some editors begin a file with a mark
        if values is None:
            values = {}
        if not isinstance(values, dict):
            raise file_error(
                path,
                title,
                f"holds {type(values).__name__}, not a mapping of fields. Hint: write lines such "
                "as 'field: value'",
            )
        _check_keys(path, title, values)
    except RecursionError:
        message = "is nested too deeply, or within itself. Hint: flatten it"
        raise file_error(path, title, message) from None
    except ConfigError:
        raise
    except UnicodeDecodeError as error:
        message = f"byte {error.start} is not UTF-8. Hint: save the file as UTF-8"
        raise file_error(path, title, message) from None
    except (yaml.YAMLError, ValueError) as error:
        raise file_error(
            path,
            title,
            f"is not valid {path.suffix[1:]}: {redact(_fault(error))}. Hint: correct it there",
        ) from None
    return values


def _fault(error: Exception) -> str:
    """Return what is wrong with the text of a file and where, in one line."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    what = getattr(error, "problem", None) or getattr(error, "context", None) or "a wrong character"
    return f"{what}, line {mark.line + 1} column {mark.column + 1}"


def write_values(path: Path, config: BaseModel) -> None:
    """Write the fields of an object; write nothing if one of them cannot be serialized.

    Raises:
        ConfigError: The file cannot be written.
    """
    title = type(config).__name__
    check_suffix(path, title)
    try:
        data = text_of(config, path.suffix).encode()
    except ValueError as error:
        raise file_error(
            path, title, f"cannot be written: {error}. Hint: remove that value"
        ) from None
    write_file(path, data, title)


def text_of(
    config: BaseModel, suffix: str = ".yaml", *, fallback: Callable[[Any], Any] | None = None
) -> str:
    """Return the fields of an object as the text of a file.

    Args:
        config: The object.
        suffix: Suffix of the file: `.json`, `.yaml` or `.yml`.
        fallback: Replaces live objects, which cannot be written; None: they raise an error.
    """
    if suffix == ".json":
        # Infinities as strings, for JSON.
        return config.model_dump_json(indent=2, fallback=fallback) + "\n"
    values = config.model_dump(mode="json", fallback=fallback)
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


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


def check_suffix(
    path: Path, title: str, allowed: Sequence[str] = (".yaml", ".yml", ".json")
) -> None:
    """Check the suffix of a file.

    Raises:
        ConfigError: The suffix is not allowed.
    """
    if path.suffix not in allowed:
        *others, last = allowed
        names = f"{', '.join(others)} or {last}"
        raise file_error(path, title, f"ends in {path.suffix!r}. Hint: use {names}")


def check_writable(path: Path, title: str) -> None:
    """Check that a file can be written, before long work; does not write it.

    Raises:
        ConfigError: The file cannot be written.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        mode = None
    except (OSError, ValueError) as error:
        raise file_error(path, title, f"cannot be written: {why_not(error)}") from None
    if mode is not None and stat.S_ISDIR(mode):
        raise file_error(path, title, "is a directory. Hint: give the path of a file")
    if mode is not None and not stat.S_ISREG(mode):
        return  # a pipe or a terminal is written to directly
    folder = path.absolute().parent if mode is None else path.resolve().parent
    if not folder.is_dir():
        raise file_error(
            path, title, f"directory {folder} does not exist. Hint: create it or use another"
        )
    # A file is replaced by a new one that is written to the same directory.
    if not (os.access(folder, os.W_OK | os.X_OK) and (mode is None or os.access(path, os.W_OK))):
        raise file_error(
            path, title, "cannot be written: permission denied. Hint: use another path"
        )


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
