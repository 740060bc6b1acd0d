"""Detect code that transformers would load from the hub, before it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

from stars_engine.config.loading import hub_kernels
from stars_engine.config.models import Checkpoint
from stars_engine.errors import ModelLoadError

_FLASH_MODULES = {
    "flash_attention_2": "flash_attn",
    "flash_attention_3": "flash_attn_interface",
    "flash_attention_4": "flash_attn",
}


def check_kernels(config: Checkpoint, declare: Callable[[], Any]) -> None:
    """Refuse attention whose code transformers would load from the hub.

    `check_no_code` checks the keywords. A checkpoint's own config can also name such attention.
    Transformers replaces flash attention that is not installed with a kernel from the hub, whether
    a keyword or that config names it.

    Raises:
        ModelLoadError: The attention is code from the hub.
    """
    asked = config.model_kwargs.get("attn_implementation")
    named = _named(asked)
    if asked is None or isinstance(asked, Mapping):  # a mapping may leave out parts of a model
        with suppress(ModelLoadError):  # loading the weights raises a better error
            declared = declare()
            parts = {"": declared}
            parts |= {name: getattr(declared, name, None) for name in declared.sub_configs}
            named += _named(
                [
                    getattr(part, "_attn_implementation", None)
                    for name, part in parts.items()
                    if name not in (asked or {})
                ]
            )
    found = next((kernel for name in named for kernel in hub_kernels(name)), None)
    if found is None and find_spec("kernels") is not None:
        found = next((name for name in named if not _is_installed(name)), None)
    if found is not None:
        raise ModelLoadError(
            f"{config.name_or_path!r}: attention {found!r} is code from the hub, but "
            "trust_remote_code is False. Hint: use model_kwargs={'attn_implementation': 'sdpa'}, "
            "install the package of that attention, or set trust_remote_code=True if you trust "
            "its repository"
        )


def _named(asked: Any) -> list[str]:
    """Return the names in a keyword or in a config: one, or one for each part of a model."""
    if isinstance(asked, Mapping):
        return _named(list(asked.values()))
    names = asked if isinstance(asked, list | tuple) else [asked]
    return [name.removeprefix("paged|") for name in names if isinstance(name, str)]


def _is_installed(attention: str) -> bool:
    module = _FLASH_MODULES.get(attention)
    return module is None or find_spec(module) is not None
