"""The registry of shared runtimes, by language model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from threading import Lock
from typing import Any

from stars_engine.backends.base import PromptedModel
from stars_engine.config import (
    CompositeReward,
    EngineParams,
    GuardrailReward,
    StarsConfig,
    ValueReward,
)
from stars_engine.config.models import Checkpoint
from stars_engine.config.servers import Server
from stars_engine.config.vllm import VLLMCheckpoint
from stars_engine.errors import ConfigError, Problem
from stars_engine.redaction import DIGESTS
from stars_engine.runtime.runtime import Runtime
from stars_engine.schema import Schema

_lock = Lock()
_runtimes: dict[str, Runtime] = {}


def shared_runtime(
    config: StarsConfig, load: Callable[[], PromptedModel], reward_key: str
) -> Runtime:
    """Return the shared runtime of the config's language model, with one more handle.

    Creates the runtime if there is none.

    Raises:
        ConfigError: The config sets limits that differ from those of the runtime.
    """
    key = key_of(config.model)
    with _lock:
        runtime = replaced = _runtimes.get(key)
        if runtime is not None:
            problems = _conflicting_params(config.engine, runtime.params)
            if problems and runtime.in_use:
                raise ConfigError("StarsEngine.shared", problems)
            if problems or not runtime.acquire(reward_key):
                runtime = None
        if runtime is None:
            runtime = _runtimes[key] = Runtime(
                load,
                config.engine,
                keep_alive_s=config.engine.keep_alive_s,
                on_close=_remove,
            )
            runtime.acquire(reward_key)
    if replaced is not None and replaced is not runtime:  # it has no handle left
        replaced.close(wait=False)
    return runtime


def key_of(part: Schema) -> str:
    """Return a key for a model: its settings and the identities of its live objects."""
    return json.dumps(_identity(part), sort_keys=True, default=repr)


def _identity(part: Schema) -> dict[str, Any]:
    if isinstance(part, CompositeReward):
        parts = {
            name: {**inner.model_dump(exclude={"reward"}), "reward": _identity(inner.reward)}
            for name, inner in part.parts.items()
        }
        return {**part.model_dump(exclude={"parts"}), "parts": parts}
    values: dict[str, Any] = part.model_dump(exclude=_live_fields(part), context=DIGESTS)
    if isinstance(part, Checkpoint | Server | VLLMCheckpoint | ValueReward):
        for name in ("name_or_path", "tokenizer_name_or_path", "adapter_path"):
            path = values.get(name)
            if path is not None and path.startswith((".", "~", "/")):
                values[name] = _absolute(path)
    return values | {name: id(getattr(part, name)) for name in _live_fields(part)}


def _absolute(path: str) -> str:
    """Return an absolute, normalized path, so that two spellings of a path are equal.

    This does not access the disk, because event loops create handles too. The kernel knows the
    working directory. `getcwdb` is used because guards of event loops report `getcwd`.
    """
    path = os.path.expanduser(path)  # noqa: PTH111 - as Path, it would lose "./"
    if not os.path.isabs(path):  # noqa: PTH117 - likewise
        path = os.path.join(os.fsdecode(os.getcwdb()), path)  # noqa: PTH118, PTH109
    return os.path.normpath(path)


def _live_fields(part: Schema) -> set[str]:
    if isinstance(part, Checkpoint):
        return {"model", "tokenizer"}
    if isinstance(part, ValueReward):
        return {"head"}
    if isinstance(part, Server | VLLMCheckpoint):
        return set()
    if isinstance(part, GuardrailReward):
        return {"guardrail_kwargs", "validate_kwargs"} if part.is_live else set()
    function = getattr(part, "function", None)
    return set() if isinstance(function, str) else {"function"}


def _conflicting_params(asked: EngineParams, running: EngineParams) -> list[Problem]:
    return [
        Problem(
            f"engine.{name}",
            f"{getattr(asked, name)} differs from the shared engine's "
            f"{getattr(running, name)}; omit it, pass the same value, or close the other handles",
        )
        for name in EngineParams.model_fields
        if name != "on_full"  # a setting of each handle
        and name in asked.model_fields_set
        and getattr(asked, name) != getattr(running, name)
    ]


def _remove(runtime: Runtime) -> None:
    with _lock:
        for key in [key for key, other in _runtimes.items() if other is runtime]:
            del _runtimes[key]


def _reset_after_fork() -> None:
    """Reset the registry: a forked child has no threads, and may inherit a locked lock."""
    global _lock, _runtimes
    _lock, _runtimes = Lock(), {}


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
