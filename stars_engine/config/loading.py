"""Validate how a checkpoint is loaded: its name and keywords, and that they load no code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import SecretBytes, SecretStr

from stars_engine.redaction import MASK, holds_secret, seal

_LONGEST_NAME, _LONGEST_PART = 4000, 255  # bytes; the limits of file systems

_RESERVED = {
    "revision": "use the field `revision`",
    "dtype": "use the field `dtype`",
    "torch_dtype": "use the field `dtype`",
    "device_map": "use the field `device_map`",
    "trust_remote_code": "use the field `trust_remote_code`",
    "pretrained_model_name_or_path": "use the field `name_or_path`",
    "use_auth_token": "use the field `token`",
    "use_safetensors": "leave it out; only safetensors weights are read",
    "weights_only": "leave it out; only safetensors weights are read",
    "custom_generate": "leave it out; the engine does not call `generate` of transformers",
}

# Keywords whose values may name code on the hub.
_ATTENTION = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
_KERNELS = ("use_kernels", "kernel_config", "allow_all_kernels")
_EXPERTS = "experts_implementation"
_HUB_EXPERTS = ("deepgemm", "deepgemm_megamoe", "sonicmoe")  # transformers downloads these


def check_name(name: str | None) -> str | None:
    """Return a hub name, a path or a revision if it is a valid file name.

    Raises:
        ValueError: It is not valid, or it contains a secret.
    """
    if name is None:
        return None
    if holds_secret(name):
        raise ValueError("it seems to contain a secret. Hint: give secrets in the field `token`")
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in name):
        raise ValueError("names and paths must not contain control characters")
    data = name.encode()
    if len(data) > _LONGEST_NAME or any(len(part) > _LONGEST_PART for part in data.split(b"/")):
        raise ValueError(
            f"a name of {len(name)} characters is too long; at most {_LONGEST_PART} bytes between "
            f"two slashes, and {_LONGEST_NAME} in all"
        )
    return name


def check_values(value: Any) -> Any:
    """Return keywords, or a device map, with their secrets sealed.

    Raises:
        ValueError: The value contains itself, a lone surrogate, bytes that are not text, or a mask
            instead of a secret.
    """
    for text in _texts(value):
        try:
            text.decode() if isinstance(text, bytes) else text.encode()
        except UnicodeError as error:
            kind = "bytes" if isinstance(text, bytes) else "text"
            raise ValueError(f"it contains {kind} that cannot be written: {error}") from None
        if text == MASK:
            raise ValueError(
                f"{MASK!r} is a placeholder for a masked secret. Hint: give the secret itself, or "
                "leave it out"
            )
    return seal(value)


def check_keywords(keywords: dict[str, Any]) -> dict[str, Any]:
    """Return keywords of `from_pretrained` with their secrets sealed.

    Raises:
        ValueError: A keyword has its own field, or allows pickles.
    """
    for name in keywords.keys() & _RESERVED.keys():
        raise ValueError(f"{name!r} cannot be given here. Hint: {_RESERVED[name]}")
    declared = keywords.get("config")
    if isinstance(declared, str | Mapping | list | tuple | int | float):
        raise ValueError(  # noqa: TRY004 - pydantic reports ValueErrors
            f"'config' is of type {type(declared).__name__}, which transformers ignores; allowed: "
            "a config object of transformers. Hint: give AutoConfig.from_pretrained(...), or leave "
            "it out"
        )
    checked: dict[str, Any] = check_values(keywords)
    return checked


def check_no_code(keywords: Mapping[str, Any]) -> None:
    """Check that no keyword loads code from the hub without `trust_remote_code`.

    Raises:
        ValueError: A keyword does.
    """
    named = list(_attention_in(keywords))
    declared = keywords.get("config")
    if not isinstance(declared, str | None):
        named.append(("config", getattr(declared, "_attn_implementation", None)))
    for name, value in named:
        kernel = next(hub_kernels(value), None)
        if kernel is not None:
            raise ValueError(
                f"{name}={kernel!r} loads code from the hub, but trust_remote_code is False. Hint: "
                "use 'sdpa', 'eager' or another installed implementation, or set "
                "trust_remote_code=True if you trust that repository"
            )
    experts = next((name for name in _strings_in(keywords.get(_EXPERTS)) if _is_on_hub(name)), None)
    if experts is not None:
        raise ValueError(
            f"{_EXPERTS}={experts!r} loads code from the hub, but trust_remote_code is False. "
            "Hint: use 'grouped_mm', 'batched_mm' or 'eager', or set trust_remote_code=True if you "
            "trust the repositories of those kernels"
        )
    for name in _KERNELS:
        if keywords.get(name):
            raise ValueError(
                f"{name} loads code from the hub, but trust_remote_code is False. Hint: leave it "
                "out, or set trust_remote_code=True if you trust the repositories of those kernels"
            )


def _attention_in(keywords: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield keywords that name attention, also those for the config of a part of a model."""
    for name, value in keywords.items():
        if name in _ATTENTION:
            yield name, value
        elif isinstance(value, Mapping):
            yield from _attention_in(value)


def hub_kernels(value: Any) -> Iterator[str]:
    """Yield attention implementations that are kernels on the hub: 'org/name@revision:part'."""
    for name in _strings_in(value):
        if any(sign in name for sign in "/@:"):
            yield name


def _is_on_hub(experts: str) -> bool:
    """Whether the code of an implementation of experts is on the hub."""
    return experts in _HUB_EXPERTS or any(hub_kernels(experts))


def _strings_in(value: Any) -> Iterator[str]:
    """Yield a string, or the strings that a value has for each part of a model."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _strings_in(part)


def _texts(value: Any, inside: tuple[int, ...] = ()) -> Iterator[str | bytes]:
    """Yield all texts and bytes in plain values.

    Raises:
        ValueError: A list or mapping contains itself.
    """
    if isinstance(value, SecretStr | SecretBytes):
        yield value.get_secret_value()
    elif isinstance(value, str | bytes):
        yield value
    elif isinstance(value, Mapping | list | tuple | set | frozenset):
        if id(value) in inside or len(inside) > 100:
            raise ValueError(
                "it contains itself, or is nested more than 100 levels deep. Hint: flatten it"
            )
        parts = [*value.keys(), *value.values()] if isinstance(value, Mapping) else value
        for part in parts:
            yield from _texts(part, (*inside, id(value)))
