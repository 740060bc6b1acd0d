"""File formats of weights other than safetensors, and the packages that they need."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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
            values = json.loads(Path(source, "config.json").read_text(encoding="utf-8"))
            given = values.get("quantization_config")
        except (OSError, ValueError, AttributeError):  # reported when the config is read
            return ""
    if given is None:
        return ""
    if isinstance(given, Mapping):
        return str(given.get("quant_method", ""))
    method: Any = getattr(given, "quant_method", "")
    return str(getattr(method, "value", method))


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:  # the parent package is missing
        return False
