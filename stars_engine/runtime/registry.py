"""The registry of shared runtimes, by language model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from threading import Lock

from stars_engine.backends.base import PromptedModel
from stars_engine.config import (
    EngineParams,
    StarsConfig,
)
from stars_engine.config.parts import Part
from stars_engine.errors import ConfigError, Problem
from stars_engine.runtime.runtime import Runtime

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


def key_of(part: Part) -> str:
    """Return a key for a model: its settings and the identities of its live objects."""
    return json.dumps(part.identity(), sort_keys=True, default=repr)


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
