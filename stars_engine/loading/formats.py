"""File formats of weights other than safetensors, and the packages that they need."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from stars_engine.config.models import Checkpoint
from stars_engine.errors import ModelLoadError

# One of these modules must be installed for a method of quantization, and what installs it.
_NEEDED = {
    "bitsandbytes": (("bitsandbytes",), "bitsandbytes"),
    "awq": (("gptqmodel", "awq"), "gptqmodel"),
    "gptq": (("gptqmodel", "auto_gptq"), "gptqmodel"),
    "torchao": (("torchao",), "torchao"),
    "compressed-tensors": (("compressed_tensors",), "compressed-tensors"),
    "hqq": (("hqq",), "hqq"),
    "quanto": (("optimum.quanto",), "optimum-quanto"),
    "aqlm": (("aqlm",), "aqlm"),
}
_NEAR = {"bitsandbytes_4bit": "bitsandbytes", "bitsandbytes_8bit": "bitsandbytes"}


def check_formats(config: Checkpoint, source: str) -> None:
    """Check that the packages for the weights of a checkpoint are installed.

    Args:
        config: The checkpoint.
        source: Its source, as `resolve_source` returns it.

    Raises:
        ModelLoadError: A package or the GGUF file is missing.
    """
    file = gguf_file(config)
    if file is not None:
        _check_gguf(file, source)
    method = _method(config, source)
    modules, package = _NEEDED.get(_NEAR.get(method, method), ((), ""))
    if modules and not any(map(_is_installed, modules)):
        raise ModelLoadError(
            f"{source!r} is quantized with {method}, which needs a package that is not installed. "
            f"Hint: pip install {package}, or use a checkpoint without quantization"
        )


def load_hint(config: Checkpoint, source: str) -> str:
    """Return how to fix a load of weights that failed.

    Args:
        config: The checkpoint.
        source: Its source, as `resolve_source` returns it.
    """
    method = _method(config, source)
    if method:
        return (
            f"the checkpoint is quantized with {method}; install the package of that method, use a "
            "device that it supports, or use a checkpoint without quantization"
        )
    return (
        "weights must be safetensors, and a checkpoint with its own code needs "
        "trust_remote_code=True"
    )


def gguf_file(config: Checkpoint) -> str | None:
    """Return the name of a GGUF file in the checkpoint's folder, if the config gives one."""
    return getattr(config, "gguf_file", None)


def _check_gguf(file: str, source: str) -> None:
    if not _is_installed("gguf"):
        raise ModelLoadError(
            f"gguf_file={file!r}: reading GGUF needs a package that is not installed. Hint: "
            "pip install gguf"
        )
    folder = Path(source)
    if folder.is_dir() and not (folder / file).is_file():
        known = ", ".join(sorted(path.name for path in folder.glob("*.gguf")))
        raise ModelLoadError(
            f"gguf_file={file!r}: {source!r} has no such file. Hint: "
            + (f"it has {known}" if known else "give the directory that holds the file")
        )


def _method(config: Checkpoint, source: str) -> str:
    """Return the method of quantization; empty if there is none, or if it is not known yet."""
    given = config.model_kwargs.get("quantization_config")
    if given is None:
        try:
            values = json.loads(_config_file(config, source).read_text(encoding="utf-8"))
            given = values.get("quantization_config")
        except (OSError, ValueError, AttributeError):  # reported when the config is read
            return ""
    if given is None:
        return ""
    if isinstance(given, Mapping):
        return str(given.get("quant_method", ""))
    method: Any = getattr(given, "quant_method", "")
    return str(getattr(method, "value", method))


def _config_file(config: Checkpoint, source: str) -> Path:
    """Return the config file of a directory, or of a model of the hub that is in its cache."""
    file = Path(source, "config.json")
    if not file.parent.is_dir():
        with suppress(ValueError):  # not a valid name
            cached = try_to_load_from_cache(source, "config.json", revision=config.revision)
            return Path(cached) if isinstance(cached, str) else file
    return file


def _is_installed(module: str) -> bool:
    try:
        found = find_spec(module)
    except ImportError:  # the parent package is missing
        return False
    return found is not None and found.origin is not None  # any folder is a namespace package
