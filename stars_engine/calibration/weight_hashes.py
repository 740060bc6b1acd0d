"""Short hashes of weights and code that are equal on every machine."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from stars_engine.calibration.fingerprints import parts_of, source_file, source_hash
from stars_engine.config import StarsConfig
from stars_engine.schema import Schema

_SUFFIXES = (".safetensors", ".gguf", ".npz")
_CHUNK, _NUM_CHUNKS = 4096, 64  # bytes, and samples of each file


def weight_hashes(config: StarsConfig) -> dict[str, str]:
    """Return a hash of the weights or code of each model of a config.

    A hash covers the sizes and samples of the weight files, wherever they lie. Models in memory,
    and models of the hub that are not in its cache, have none.
    """
    hashes = {name: _part_hash(part) for name, part in parts_of(config).items()}
    return {name: found for name, found in hashes.items() if found}


def _part_hash(part: Schema) -> str:
    function = getattr(part, "function", None)
    if isinstance(function, str):
        file = source_file(function)
        return "" if file is None else _file_hash(str(file), *_state(file))
    if callable(function):
        return source_hash(function)
    hashes = []
    for field in ("name_or_path", "adapter_path"):
        name = getattr(part, field, None)
        folder = _folder(name, getattr(part, "revision", None)) if name else None
        if folder is not None:
            files = sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES)
            hashes += [_file_hash(str(file), *_state(file)) for file in files]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()[:12] if hashes else ""


def _folder(name: str, revision: str | None) -> Path | None:
    """Return the directory of a checkpoint: local, inside the package, or in the hub's cache."""
    with suppress(ImportError, ValueError, OSError):
        from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - part of an extra

        from stars_engine.loading.sources import resolve_source  # noqa: PLC0415 - likewise

        folder = Path(resolve_source(name))
        if folder.is_dir():
            return folder
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        return Path(cached).parent if isinstance(cached, str) else None
    return None


def _state(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=256)
def _file_hash(path: str, size: int, _changed_ns: int) -> str:
    """Return a hash of the size and of samples of a file; read once until the file changes."""
    digest = hashlib.sha256(str(size).encode())
    with Path(path).open("rb") as file:
        for index in range(_NUM_CHUNKS if size > _CHUNK * _NUM_CHUNKS else 1):
            file.seek(index * (size - _CHUNK) // max(1, _NUM_CHUNKS - 1))
            digest.update(file.read(_CHUNK if size > _CHUNK * _NUM_CHUNKS else size))
    return digest.hexdigest()[:12]
