"""Runtimes that handles share, by what they have loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from threading import Lock
from typing import Any

from stars_engine.backends.base import PromptedModel
from stars_engine.config import CompositeReward, EngineParams, StarsConfig
from stars_engine.config.models import Checkpoint
from stars_engine.errors import ConfigError, Problem
from stars_engine.masking import DIGESTS
from stars_engine.runtime.runtime import Runtime
from stars_engine.schema import Schema

_lock = Lock()
_runtimes: dict[str, Runtime] = {}


def shared_runtime(
    config: StarsConfig, load: Callable[[], PromptedModel], reward_key: str
) -> Runtime:
    """Return the runtime of the config's language model with one more handle, or make it.

    Raises:
        ConfigError: The config sets bounds other than those it runs with.
    """
    key = key_of(config.model)
    with _lock:
        runtime = replaced = _runtimes.get(key)
        if runtime is not None:
            problems = _other_bounds(config.engine, runtime.params)
            if problems and runtime.is_held:
                raise ConfigError("StarsEngine.shared", problems)
            if problems or not runtime.acquire(reward_key):
                runtime = None
        if runtime is None:
            runtime = _runtimes[key] = Runtime(
                load,
                config.engine,
                keep_alive_s=config.engine.keep_alive_s,
                on_close=_forget,
            )
            runtime.acquire(reward_key)
    if replaced is not None and replaced is not runtime:  # nobody holds it
        replaced.close(wait=False)
    return runtime


def key_of(part: Schema) -> str:
    """Return what tells a model from others: its settings, and the live objects it holds."""
    return json.dumps(_identity(part), sort_keys=True, default=repr)


def _identity(part: Schema) -> dict[str, Any]:
    if isinstance(part, CompositeReward):
        parts = {
            name: {**inner.model_dump(exclude={"reward"}), "reward": _identity(inner.reward)}
            for name, inner in part.parts.items()
        }
        return {**part.model_dump(exclude={"parts"}), "parts": parts}
    values: dict[str, Any] = part.model_dump(exclude=_live_fields(part), context=DIGESTS)
    if isinstance(part, Checkpoint):
        for name in ("name_or_path", "tokenizer_name_or_path", "adapter_path"):
            path = values.get(name)
            if path is not None and path.startswith((".", "~", "/")):
                values[name] = _absolute(path)
    return values | {name: id(getattr(part, name)) for name in _live_fields(part)}


def _absolute(path: str) -> str:
    """Return a path by which two spellings of it are known for one.

    Without a look at the disk: event loops make handles too. (The kernel knows the working
    directory; asked for it as bytes, it is not taken for a disk by guards of event loops.)
    """
    path = os.path.expanduser(path)  # noqa: PTH111 - as Path, it would lose "./"
    if not os.path.isabs(path):  # noqa: PTH117 - likewise
        path = os.path.join(os.fsdecode(os.getcwdb()), path)  # noqa: PTH118, PTH109
    return os.path.normpath(path)


def _live_fields(part: Schema) -> set[str]:
    if isinstance(part, Checkpoint):
        return {"model", "tokenizer"}
    function = getattr(part, "function", None)
    return set() if isinstance(function, str) else {"function"}


def _other_bounds(asked: EngineParams, running: EngineParams) -> list[Problem]:
    return [
        Problem(
            f"engine.{name}",
            f"{getattr(asked, name)} is not what the shared engine runs with, "
            f"{getattr(running, name)}; leave it out, give the same, or close the other handles",
        )
        for name in EngineParams.model_fields
        if name != "on_full"  # each handle's own
        and name in asked.model_fields_set
        and getattr(asked, name) != getattr(running, name)
    ]


def _forget(runtime: Runtime) -> None:
    with _lock:
        for key in [key for key, other in _runtimes.items() if other is runtime]:
            del _runtimes[key]


def _begin_anew() -> None:
    """A forked child has none of its parent's threads, and perhaps a lock that nobody frees."""
    global _lock, _runtimes
    _lock, _runtimes = Lock(), {}


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
