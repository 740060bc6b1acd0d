"""Where a checkpoint comes from: find and check its source before it is loaded."""

from __future__ import annotations

import json
import os
from importlib import resources
from pathlib import Path

import huggingface_hub
from huggingface_hub.constants import HF_HUB_CACHE, is_offline_mode
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name

from stars_engine.config import EMBEDDED_LM, EMBEDDED_REWARD, EMBEDDED_VALUE
from stars_engine.config.models import Checkpoint
from stars_engine.errors import ModelLoadError
from stars_engine.redaction import redact

_EMBEDDED_FOLDERS = {EMBEDDED_LM: "lm", EMBEDDED_REWARD: "reward", EMBEDDED_VALUE: "value"}
HUB_TIMEOUT_S = 10.0
_HUB_ANSWERS = {
    HFValidationError: "it is not a valid hub name",
    RepositoryNotFoundError: "the hub has no such model, or your token cannot read it",
    RevisionNotFoundError: "the hub has no such revision of it",
    OfflineModeIsEnabled: "it is not in the hub's cache, and HF_HUB_OFFLINE forbids downloads",
}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def resolve_source(name: str) -> str:
    """Return a source that transformers can load: expand `~/x`, and locate embedded weights.

    Other names are returned unchanged.

    Raises:
        ModelLoadError: The name has the form of an embedded model, but there is no such model.
    """
    if name in _EMBEDDED_FOLDERS:
        return _embedded_folder(name)
    if name.startswith("stars:"):
        raise ModelLoadError(
            f"unknown embedded model {name!r}. Hint: use one of {', '.join(_EMBEDDED_FOLDERS)}"
        )
    return os.path.expanduser(name)  # noqa: PTH111 - as Path, "./x" would read as a hub name


def tokenizer_files(source: str) -> dict[str, str]:
    """Return keywords for the files of a tokenizer that are not in its source.

    The embedded models share the file of the language model's tokenizer.
    """
    if Path(source).resolve() != Path(_embedded_folder(EMBEDDED_REWARD)).resolve():
        return {}
    return {"tokenizer_file": str(Path(_embedded_folder(EMBEDDED_LM), "tokenizer.json"))}


def _embedded_folder(name: str) -> str:
    return str(resources.files("stars_engine") / "embedded" / _EMBEDDED_FOLDERS[name])


def check_local(part: Checkpoint) -> None:
    """Check that the directories of a checkpoint exist, before anything is loaded.

    Names on the hub are not looked up, unless only its cache can be used.

    Raises:
        ModelLoadError: A directory does not exist.
    """
    for field in ("name_or_path", "tokenizer_name_or_path", "adapter_path"):
        name = getattr(part, field, None)
        if name is not None and (
            name.startswith("stars:") or _looks_local(name) or is_offline_mode()
        ):
            check_exists(resolve_source(name), field)


def _looks_local(source: str) -> bool:
    return Path(source).is_absolute() or source.startswith((".", "~")) or source.count("/") > 1


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
    if path.suffix == ".gguf" and path.is_file():
        raise ModelLoadError(
            f"{field}={source!r} is a file. Hint: give its directory as {field}, and "
            f"gguf_file={path.name!r}"
        )
    if path.is_file() or _looks_local(source):
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


def check_model(config: Checkpoint) -> None:
    """Check that the source exists and, if it is a directory, holds a model without pickles."""
    assert config.name_or_path is not None
    source = resolve_source(config.name_or_path)
    check_exists(source, "name_or_path", config.revision, hub_token(config))
    path = Path(source)
    if not path.is_dir() or getattr(config, "gguf_file", None) is not None:
        return  # a GGUF file holds the config and the tokenizer as well
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


def hub_hint(source: str) -> str:
    """Return a further hint for the source of a failed load, unless it is a local directory."""
    if Path(source).is_dir():
        return ""
    return "; check the name, the revision and the network, or give a local directory"


def hub_token(config: Checkpoint) -> str | None:
    """Return the hub token; None for the token of the environment."""
    return None if config.token is None else config.token.get_secret_value()


def first_line(error: Exception, config: Checkpoint | None = None) -> str:
    """Return the first line of an error message without its full stop.

    The config's secrets, and anything that looks like a secret, are masked.
    """
    lines = redact(str(error), () if config is None else config.secrets).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__
