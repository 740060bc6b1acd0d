"""Load the config, tokenizer and weights of a checkpoint."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from functools import partial
from threading import Lock
from typing import Any

import transformers

from stars_engine.config.models import Checkpoint
from stars_engine.errors import ModelLoadError, StarsWarning
from stars_engine.loading.devices import pick_device, pick_dtype
from stars_engine.loading.formats import check_formats, gguf_file, load_hint
from stars_engine.loading.hub_code import check_kernels
from stars_engine.loading.sources import (
    check_exists,
    check_model,
    first_line,
    hub_hint,
    hub_token,
    resolve_source,
    tokenizer_files,
)
from stars_engine.redaction import MASK, masked, redacted_cause, unseal

_CLASSIFIER_HEAD = re.compile(
    r"(^|\.)(score|classifier|v_head|value_head|reward_head|regression_head)\."
)

# Each engine loads on its own thread, but transformers sets the default dtype and device of the
# whole process during a load. If two loads overlap, one can miss weights.
_one_load = Lock()


def _begin_anew() -> None:
    """Replace the lock in a forked child, where a load in progress does not continue."""
    global _one_load  # noqa: PLW0603 - the lock is of the process
    _one_load = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def load_tokenizer(config: Checkpoint) -> Any:
    """Load the tokenizer from the model's source, or from `tokenizer_name_or_path`.

    Raises:
        ModelLoadError: There is no tokenizer, or it cannot be read.
    """
    if config.model is not None:
        return config.tokenizer
    assert config.name_or_path is not None
    source = resolve_source(config.tokenizer_name_or_path or config.name_or_path)
    if config.tokenizer_name_or_path is None:
        check_model(config)  # report a missing model before a missing tokenizer
    else:
        check_exists(source, "tokenizer_name_or_path", config.revision, hub_token(config))
    where = _from_where(config)
    if config.tokenizer_name_or_path is not None:
        where.pop("gguf_file", None)  # which lies with the weights
    else:
        check_formats(config, source)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            source, **tokenizer_files(source), **where
        )
    except Exception as error:  # noqa: BLE001 - libraries fail in many ways
        raise ModelLoadError(
            f"no tokenizer could be loaded from {source!r}: {first_line(error, config)}. Hint: set "
            f"tokenizer_name_or_path to the source of the tokenizer{hub_hint(source)}"
        ) from redacted_cause(error, config.secrets)
    # transformers creates an empty tokenizer from a directory that has none.
    if len(tokenizer.get_vocab()) <= len(tokenizer.all_special_tokens):
        raise ModelLoadError(
            f"{source!r} holds a model without a tokenizer. Hint: set tokenizer_name_or_path to "
            "the source of the tokenizer"
        )
    return tokenizer


def read_config(config: Checkpoint) -> Any:
    """Read the config of a checkpoint, without weights.

    Raises:
        ModelLoadError: There is no config, or it cannot be read.
    """
    assert config.name_or_path is not None
    source = resolve_source(config.name_or_path)
    try:
        return transformers.AutoConfig.from_pretrained(source, **_from_where(config))
    except Exception as error:  # noqa: BLE001 - libraries fail in many ways
        raise ModelLoadError(
            f"the config of {source!r} cannot be read: {first_line(error, config)}. Hint: check "
            "the name, or use trust_remote_code=True for a checkpoint with its own code"
        ) from redacted_cause(error, config.secrets)


def load_model(config: Checkpoint, auto_class: Any) -> Any:
    """Load weights (safetensors only), move them to the device and switch to evaluation mode.

    Raises:
        ModelLoadError: The checkpoint is missing, holds only pickles, or does not fit the class.
    """
    if config.model is not None:
        return config.model.eval()
    assert config.name_or_path is not None
    source = resolve_source(config.name_or_path)
    check_model(config)
    check_formats(config, source)
    if not config.trust_remote_code:
        check_kernels(config, partial(read_config, config))
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    device = None if config.device_map is not None else pick_device(config.device)
    placement = {} if config.device_map is None else {"device_map": unseal(config.device_map)}
    keywords = _keywords(config)
    try:
        with _one_load:
            model, info = auto_class.from_pretrained(
                source,
                **_from_where(config),
                dtype=pick_dtype(config, device),
                use_safetensors=gguf_file(config) is None,
                **placement,
                **{**keywords, "output_loading_info": True},
            )
    except Exception as error:  # noqa: BLE001 - libraries fail in many ways
        raise ModelLoadError(
            f"{source!r} could not be loaded as {auto_class.__name__}: {first_line(error, config)}."
            f" Hint: {load_hint(config, source)}{hub_hint(source)}"
        ) from redacted_cause(error, config.secrets)
    _check_weights(info, source, auto_class)
    if device is not None and getattr(model, "quantization_method", None) is None:
        model = model.to(device)
    return model.eval()


def _from_where(config: Checkpoint) -> dict[str, Any]:
    """Return the keywords with which all parts of a checkpoint are loaded."""
    return {
        "revision": config.revision,
        "trust_remote_code": config.trust_remote_code,
        "token": hub_token(config),
        **({} if gguf_file(config) is None else {"gguf_file": gguf_file(config)}),
    }


def _keywords(config: Checkpoint) -> dict[str, Any]:
    """Return the further keywords, including their secrets.

    Raises:
        ModelLoadError: A secret is missing because the config was pickled.
    """
    if MASK in config.secrets:
        raise ModelLoadError(
            f"model_kwargs={masked(config.model_kwargs)}: a secret is missing, because pickles do "
            "not contain secrets. Hint: set it again with .replace(model_kwargs=...)"
        )
    keywords: dict[str, Any] = unseal(config.model_kwargs)
    return keywords


def _check_weights(info: Mapping[str, Any], source: str, auto_class: Any) -> None:
    """Refuse missing weights, which transformers initializes randomly; tied weights are fine."""
    # Mismatched keys may come with their shapes.
    mismatched = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
    missing = sorted({*info["missing_keys"], *mismatched})
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if missing[5:] else "")
        raise ModelLoadError(
            f"{source!r} lacks weights of {auto_class.__name__}: {shown}; they would be random. "
            "Hint: use a checkpoint that was trained for this task: a language model as model, a "
            "sequence classifier as reward"
        )
    head = sorted(key for key in info["unexpected_keys"] if _CLASSIFIER_HEAD.search(key))
    if head and auto_class is transformers.AutoModelForCausalLM:
        warnings.warn(
            f"{source!r} is used as the language model, but has a classifier head ({head[0]}), "
            "which is ignored; it may be a reward model. Hint: give the name of the language "
            "model",
            StarsWarning,
            stacklevel=3,
        )
