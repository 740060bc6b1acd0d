"""Read all attributes of custom models that the engine reads, so that errors appear at once.

An attribute may be a property that raises. Read later, on the engine's thread, it would end the
requests that need it, one by one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from stars_engine.backends.base import PromptedModel
from stars_engine.errors import ModelLoadError, StarsError, describe_error, is_for_program
from stars_engine.rewards.base import RewardModel, is_offloaded
from stars_engine.rewards.offloading import offloading_of
from stars_engine.rewards.reward_requests import gathers

_OF_BOTH = (
    "bytes_per_token",
    "client",
    "free_unused",
    "limit_cache",
    "memory_usage",
    "server_stats",
)
OF_MODELS = (
    *_OF_BOTH,
    "check_grammar",
    "codec",
    "completion_text",
    "context_len",
    "default_sampling",
    "draft",
    "encode_continuation",
    "interrupt",
    "is_end",
    "submit",
    "vocab_size",
)
OF_REWARDS = (
    *_OF_BOTH,
    "batched",
    "divide",
    "end_calls",
    "ends_overdue_calls",
    "failures",
    "invalidate_if_changed",
    "is_timed",
    "max_concurrency",
    "models",
    "name",
    "probe",
    "reads_ids",
    "score",
    "threads",
    "timeout_s",
)


def check_model(model: PromptedModel) -> None:
    """Check that the attributes of a language model can be read.

    Raises:
        ModelLoadError: One of them raises an error, or has a value that is not allowed.
    """
    _read_all(model, OF_MODELS, "language model")
    limit, size = getattr(model, "context_len", None), getattr(model, "vocab_size", 1)
    if not _is_count(size):
        raise _not_allowed(model, f"vocab_size={size!r:.60}", "an integer >= 1")
    if limit is not None and not _is_count(limit):
        raise _not_allowed(model, f"context_len={limit!r:.60}", "an integer >= 1, or None")


def check_reward(reward: RewardModel) -> None:
    """Check that the attributes of a reward model, and of its parts, can be read.

    Raises:
        ModelLoadError: One of them raises an error, or has a value that is not allowed.
    """
    _read_all(reward, OF_REWARDS, "reward model")
    try:
        parts = list(reward.models()) if gathers(reward) else [reward]
        for part in parts:
            if part is not reward:
                _read_all(part, OF_REWARDS, "reward model")
            if is_offloaded(part):
                offloading_of(part)
    except BaseException as error:
        if is_for_program(error) or isinstance(error, StarsError):
            raise
        raise _not_allowed(reward, describe_error(error), "see OffloadedReward") from error


def _read_all(value: object, names: Iterable[str], what: str) -> None:
    for name in names:
        try:
            getattr(value, name, None)
        except BaseException as error:
            if is_for_program(error):
                raise
            raise ModelLoadError(
                f"the attribute {name!r} of the {what} {type(value).__name__} cannot be read: "
                f"{describe_error(error)}. Hint: fix the code that raised this"
            ) from error


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 1


def _not_allowed(value: object, what: str, allowed: str) -> ModelLoadError:
    return ModelLoadError(
        f"{type(value).__name__}: {what} is not allowed; allowed: {allowed}. Hint: correct the "
        "attribute"
    )
