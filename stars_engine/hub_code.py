"""Code that transformers would take from the hub, found before it does."""

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
    """Refuse attention whose code transformers would load from the hub, trusted or not.

    `check_no_code` has refused what the keywords say. A checkpoint's own config can say the same,
    and for flash attention that is not installed transformers takes a kernel of the hub.

    Raises:
        ModelLoadError: It would.
    """
    asked = config.model_kwargs.get("attn_implementation")
    found = None
    if asked is None:
        with suppress(ModelLoadError):  # loading the weights tells it better
            declared = declare()
            parts = [declared, *(getattr(declared, name, None) for name in declared.sub_configs)]
            declared_by = [getattr(part, "_attn_implementation", None) for part in parts]
            found = next((kernel for name in declared_by for kernel in hub_kernels(name)), None)
    elif find_spec("kernels") is not None:
        found = next((name for name in _named(asked) if not _is_installed(name)), None)
    if found is not None:
        raise ModelLoadError(
            f"{config.name_or_path!r}: attention {found!r} is code from the hub, and "
            "trust_remote_code is off. Hint: model_kwargs={'attn_implementation': 'sdpa'}, install "
            "the package of that attention, or trust_remote_code=True if you trust its "
            "repository"
        )


def _named(asked: Any) -> list[str]:
    names = list(asked.values()) if isinstance(asked, Mapping) else [asked]
    return [name.removeprefix("paged|") for name in names if isinstance(name, str)]


def _is_installed(attention: str) -> bool:
    module = _FLASH_MODULES.get(attention)
    return module is None or find_spec(module) is not None
