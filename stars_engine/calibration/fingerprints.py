"""Fingerprints of models, which change if their weights or code change."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stars_engine.config import CompositeReward, StarsConfig
from stars_engine.schema import Schema


def model_fingerprints(config: StarsConfig) -> dict[str, list[Any]]:
    """Return the fingerprint of each model of a config.

    For a directory, it consists of the sizes and modification times of its files. For a function,
    it is the file of the module, or the source if the function is given as an object. Models from
    the hub have no fingerprint.
    """
    return {name: _fingerprint(part) for name, part in parts_of(config).items()}


def parts_of(config: StarsConfig) -> dict[str, Schema]:
    """Return the models of a config by name; those of a composite reward as well."""
    parts: dict[str, Schema] = {"model": config.model, "reward": config.reward}
    if isinstance(config.reward, CompositeReward):
        parts |= {f"reward {key}": part.reward for key, part in config.reward.parts.items()}
    return parts


def source_file(function: str) -> Path | None:
    """Return the file of the module of 'package.module:name'; None if there is none."""
    with suppress(ImportError, ValueError, OSError):
        spec = find_spec(function.partition(":")[0])
        if spec is not None and spec.origin is not None and Path(spec.origin).is_file():
            return Path(spec.origin)
    return None


def _fingerprint(part: Schema) -> list[Any]:
    found: list[Any] = []
    function = getattr(part, "function", None)
    if isinstance(function, str):
        file = source_file(function)
        if file is not None:
            found.append(_file(file))
    elif callable(function):
        found.append(source_hash(function))
    for field in ("name_or_path", "tokenizer_name_or_path", "adapter_path"):
        name = getattr(part, field, None)
        folder = Path(os.path.expanduser(name)) if name else None  # noqa: PTH111
        if folder is not None and folder.is_dir():
            found.append(str(folder.resolve()))
            files = [f for f in sorted(folder.iterdir()) if f.suffix in (".safetensors", ".json")]
            found += [_file(file) for file in files]
    return found


def _file(path: Path) -> list[Any]:
    status = path.stat()
    return [str(path), status.st_size, status.st_mtime_ns]


def source_hash(function: Callable[..., Any]) -> str:
    """Return a hash of the source; empty if there is none, as for built-in functions."""
    try:
        text = inspect.getsource(function if inspect.isroutine(function) else type(function))
    except (OSError, TypeError):
        return ""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
