"""What tells whether names still stand for the same weights and code."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stars_engine.config import CompositeReward, StarsConfig
from stars_engine.schema import Schema


def stamps(config: StarsConfig) -> dict[str, list[Any]]:
    """Return, for the models of a config, what changes when other weights or code take their place.

    Of directories the sizes and times of the files count, of functions their module's file, or
    their source where they are given as objects. What is loaded from the hub has none.
    """
    parts: dict[str, Schema] = {"model": config.model, "reward": config.reward}
    if isinstance(config.reward, CompositeReward):
        parts |= {f"reward {key}": part.reward for key, part in config.reward.parts.items()}
    return {name: _stamp(part) for name, part in parts.items()}


def _stamp(part: Schema) -> list[Any]:
    found: list[Any] = []
    function = getattr(part, "function", None)
    if isinstance(function, str):
        with suppress(ImportError, ValueError, OSError):
            spec = find_spec(function.partition(":")[0])
            if spec is not None and spec.origin is not None:
                found.append(_file(Path(spec.origin)))
    elif callable(function):
        found.append(_source(function))
    for field in ("name_or_path", "tokenizer_name_or_path", "adapter_path"):
        name = getattr(part, field, None)
        folder = Path(name).expanduser() if name else None
        if folder is not None and folder.is_dir():
            found.append(str(folder.resolve()))
            files = [f for f in sorted(folder.iterdir()) if f.suffix in (".safetensors", ".json")]
            found += [_file(file) for file in files]
    return found


def _file(path: Path) -> list[Any]:
    status = path.stat()
    return [str(path), status.st_size, status.st_mtime_ns]


def _source(function: Callable[..., Any]) -> str:
    """Return a hash of the source; nothing where there is none, as of built-in functions."""
    try:
        text = inspect.getsource(function if inspect.isroutine(function) else type(function))
    except (OSError, TypeError):
        return ""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
