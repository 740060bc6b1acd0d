"""Load the config, tokenizer and weights of a checkpoint."""

from __future__ import annotations

import json
import logging
import os
import re
import warnings
from collections.abc import Mapping
from functools import partial
from importlib import resources
from pathlib import Path
from threading import Lock
from typing import Any

import huggingface_hub
import torch
import transformers
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name

from stars_engine.config import EMBEDDED_LM, EMBEDDED_REWARD
from stars_engine.config.models import Checkpoint
from stars_engine.errors import ModelLoadError, StarsWarning
from stars_engine.loading.hub_code import check_kernels
from stars_engine.masking import MASK, masked, redact, redacted_cause, unseal

logger = logging.getLogger(__name__)

_EMBEDDED_FOLDERS = {EMBEDDED_LM: "lm", EMBEDDED_REWARD: "reward"}
_CLASSIFIER_HEAD = re.compile(
    r"(^|\.)(score|classifier|v_head|value_head|reward_head|regression_head)\."
)
HUB_TIMEOUT_S = 10.0
_HUB_ANSWERS = {
    HFValidationError: "it is not a valid hub name",
    RepositoryNotFoundError: "the hub has no such model, or your token cannot read it",
    RevisionNotFoundError: "the hub has no such revision of it",
    OfflineModeIsEnabled: "it is not in the hub's cache, and HF_HUB_OFFLINE forbids downloads",
}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")

# Each engine loads on its own thread, but transformers sets the default dtype and device of the
# whole process during a load. If two loads overlap, one can miss weights.
_one_load = Lock()


def _begin_anew() -> None:
    """Replace the lock in a forked child, where a load in progress does not continue."""
    global _one_load  # noqa: PLW0603 - the lock is of the process
    _one_load = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def resolve_source(name: str) -> str:
    """Return a source that transformers can load: expand `~/x`, and locate embedded weights.

    Other names are returned unchanged.

    Raises:
        ModelLoadError: The name has the form of an embedded model, but there is no such model.
    """
    if name in _EMBEDDED_FOLDERS:
        return str(resources.files("stars_engine") / "embedded" / _EMBEDDED_FOLDERS[name])
    if name.startswith("stars:"):
        raise ModelLoadError(
            f"unknown embedded model {name!r}. Hint: use one of {', '.join(_EMBEDDED_FOLDERS)}"
        )
    return os.path.expanduser(name)  # noqa: PTH111 - as Path, "./x" would read as a hub name


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
        _check_model(config)  # report a missing model before a missing tokenizer
    else:
        check_exists(source, "tokenizer_name_or_path", config.revision, hub_token(config))
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **_from_where(config))
    except Exception as error:  # noqa: BLE001 - libraries fail in many ways
        raise ModelLoadError(
            f"no tokenizer could be loaded from {source!r}: {first_line(error, config)}. Hint: set "
            f"tokenizer_name_or_path to the source of the tokenizer{_hub_hint(source)}"
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
    _check_model(config)
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
                dtype=_dtype(config, device),
                use_safetensors=True,
                **placement,
                **{**keywords, "output_loading_info": True},
            )
    except Exception as error:  # noqa: BLE001 - libraries fail in many ways
        raise ModelLoadError(
            f"{source!r} could not be loaded as {auto_class.__name__}: {first_line(error, config)}."
            " Hint: weights must be safetensors, and a checkpoint with its own code needs "
            f"trust_remote_code=True{_hub_hint(source)}"
        ) from redacted_cause(error, config.secrets)
    _check_weights(info, source, auto_class)
    if device is not None and getattr(model, "quantization_method", None) is None:
        model = model.to(device)
    return model.eval()


def hub_token(config: Checkpoint) -> str | None:
    """Return the hub token; None for the token of the environment."""
    return None if config.token is None else config.token.get_secret_value()


def _from_where(config: Checkpoint) -> dict[str, Any]:
    """Return the keywords with which all parts of a checkpoint are loaded."""
    return {
        "revision": config.revision,
        "trust_remote_code": config.trust_remote_code,
        "token": hub_token(config),
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


def pick_device(name: str) -> torch.device:
    """Convert the field `device` to an available device.

    Raises:
        ModelLoadError: The device is not available.
    """
    mps = torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelLoadError(
            f"device={name!r}: this process sees {torch.cuda.device_count()} CUDA devices. Hint: "
            "use device='auto', or install a torch build for your GPU"
        )
    if device.type == "mps" and not mps:
        raise ModelLoadError("device='mps': this machine has no MPS. Hint: use device='auto'")
    return device


def context_len(config: Any, tokenizer: Any) -> int | None:
    """Return the context length of a model, or None if it has no limit.

    LongRoPE has two sets of rotary factors and chooses by the longest row of a forward pass. Beyond
    the boundary, a text would depend on batch composition, and cached keys would belong to the
    other set, so the context ends at the boundary. ("dynamic" factors change beyond
    max_position_embeddings, which is the limit in any case.)
    """
    text_config = config.get_text_config()
    limit = _declared_len(text_config, tokenizer)
    border = _longrope_border(text_config)
    if border is None or (limit is not None and limit <= border):
        return limit
    logger.warning(
        "%s reads at most %d tokens instead of %s, because its rotary factors change beyond that "
        "for all rows of a batch",
        getattr(config, "model_type", "the model"),
        border,
        limit,
    )
    return border


def _declared_len(text_config: Any, tokenizer: Any) -> int | None:
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        value = getattr(text_config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    limit = getattr(tokenizer, "model_max_length", None)
    return limit if isinstance(limit, int) and limit < 10**9 else None


def _longrope_border(text_config: Any) -> int | None:
    """Return the length beyond which rotary factors depend on the longest row, or None.

    LongRoPE has two sets of factors; dynamic factors grow with the text.
    """
    given = getattr(text_config, "rope_parameters", None)
    given = given or getattr(text_config, "rope_scaling", None)
    if not isinstance(given, dict):
        return None
    # One set of parameters, or one for each type of layer.
    sets = [given, *(value for value in given.values() if isinstance(value, dict))]
    fallback = getattr(text_config, "original_max_position_embeddings", None)
    borders = [
        one.get("original_max_position_embeddings", fallback)
        for one in sets
        if one.get("rope_type", one.get("type")) in ("longrope", "su", "dynamic")
    ]
    return min((border for border in borders if isinstance(border, int)), default=None)


def _dtype(config: Checkpoint, device: torch.device | None) -> Any:
    if config.dtype != "auto":
        return getattr(torch, config.dtype)
    is_cpu = _is_cpu(config.device_map) if device is None else device.type == "cpu"
    # Most CPUs emulate half precision, and widening stored weights to float32 is exact.
    return torch.float32 if is_cpu else "auto"


def _is_cpu(device_map: str | dict[str, Any] | None) -> bool:
    """Whether a device map puts the whole model on the CPU, where parts on disk also compute.

    The automatic maps of accelerate do so if there is no accelerator.
    """
    if isinstance(device_map, dict):
        return all(str(device) in ("cpu", "disk") for device in device_map.values())
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        return not torch.accelerator.is_available()
    return device_map == "cpu"


def check_exists(
    source: str, field: str, revision: str | None = None, token: str | None = None
) -> None:
    """Check that a source, as `resolve_source` returns it, is a directory or a hub repository.

    The hub is asked once, with a short timeout; loading would ask many times for missing files.

    Raises:
        ModelLoadError: It is neither.
    """
    path = Path(source)
    if path.is_dir():
        return
    looks_local = path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1
    if path.is_file() or looks_local:
        found = "a file" if path.is_file() else "no such directory"
        raise ModelLoadError(
            f"{field}={source!r}: {found}. Hint: give a directory written by save_pretrained, or a "
            "hub name such as 'Qwen/Qwen2.5-0.5B'"
        )
    missing = _why_not_on_hub(source, revision, token)
    if missing is not None:
        raise ModelLoadError(
            f"{field}={source!r}: no such directory, and {missing}. "
            "Hint: check the name, the revision and the network, or give a local directory "
            "written by save_pretrained"
        )


def _why_not_on_hub(name: str, revision: str | None, token: str | None) -> str | None:
    """Return why a model is not on the hub; None if it is there, or partly in the local cache."""
    try:
        if (Path(HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")).is_dir():
            return None
        url = huggingface_hub.hf_hub_url(name, "config.json", revision=revision)
        huggingface_hub.get_hf_file_metadata(url, timeout=HUB_TIMEOUT_S, token=token)
    except EntryNotFoundError:
        return None  # the repository exists; it may be a tokenizer or an adapter
    except Exception as error:  # noqa: BLE001 - networks fail in many ways
        known = (words for kind, words in _HUB_ANSWERS.items() if isinstance(error, kind))
        said = redact(first_line(error), () if token is None else (token,))
        return next(known, f"the hub could not be reached ({said})")
    return None


def _check_model(config: Checkpoint) -> None:
    """Check that the source exists and, if it is a directory, holds a model without pickles."""
    assert config.name_or_path is not None
    source = resolve_source(config.name_or_path)
    check_exists(source, "name_or_path", config.revision, hub_token(config))
    path = Path(source)
    if not path.is_dir():
        return
    _check_config_file(path / "config.json", source)
    pickles = sorted(file.name for kind in _PICKLES for file in path.glob(kind))
    if pickles and not any(path.glob("*.safetensors")):
        raise ModelLoadError(
            f"name_or_path={source!r} holds only pickled weights ({pickles[0]}), which can run "
            "code when loaded. Hint: if you trust them, load them once and write safetensors with "
            "model.save_pretrained(directory)"
        )


def _check_config_file(path: Path, source: str) -> None:
    if not path.is_file():
        raise ModelLoadError(
            f"name_or_path={source!r}: the directory has no config.json, so it is not a model. "
            "Hint: give a directory written by save_pretrained"
        )
    try:
        found = type(json.loads(path.read_text(encoding="utf-8"))).__name__
        broken = None if found == "dict" else f"it holds a {found}, not a mapping"
    except (OSError, ValueError, RecursionError) as error:
        broken = first_line(error)
    if broken is not None:
        raise ModelLoadError(
            f"name_or_path={source!r}: its config.json cannot be used: {broken}. Hint: write it "
            "again with model.save_pretrained(directory)"
        )


def _hub_hint(source: str) -> str:
    """Return a further hint for sources that are not local directories."""
    if Path(source).is_dir():
        return ""
    return "; check the name, the revision and the network, or give a local directory"


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


def first_line(error: Exception, config: Checkpoint | None = None) -> str:
    """Return the first line of an error message without its full stop.

    The config's secrets, and anything that looks like a secret, are masked.
    """
    lines = redact(str(error), () if config is None else config.secrets).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__
