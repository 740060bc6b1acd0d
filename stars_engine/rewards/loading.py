"""Load reward models from config objects. Kinds that need torch import it when they load."""

from __future__ import annotations

from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from stars_engine.config import (
    ClassifierReward,
    CompositeReward,
    FunctionReward,
    GuardrailReward,
    GuardReward,
    ProcessReward,
    RewardConfig,
    ServerProcessReward,
    ServerReward,
    ServerYesNoReward,
    ValueReward,
    VLLMReward,
    YesNoReward,
)
from stars_engine.config.models import Checkpoint
from stars_engine.errors import ModelLoadError, needs_extra
from stars_engine.rewards.base import RewardModel


def check_reward(config: RewardConfig) -> None:
    """Check what can be checked at once: that functions can be imported and directories exist.

    Raises:
        ModelLoadError: A function cannot be imported, or a directory does not exist.
    """
    if isinstance(config, CompositeReward):
        for part in config.parts.values():
            check_reward(part.reward)
    elif isinstance(config, FunctionReward):
        from stars_engine.rewards.function import resolve_function

        resolve_function(config.function)
    elif isinstance(config, GuardrailReward):
        with needs_extra("guardrails"):
            from stars_engine.rewards.guardrail import check_guardrail
        check_guardrail(config)
    elif isinstance(config, Checkpoint):
        with needs_extra("local"):
            from stars_engine.loading.sources import check_local
        _check_no_function(config)
        check_local(config)


def _check_no_function(config: Checkpoint) -> None:
    """Raise `ModelLoadError` if a name is a function with a period in place of the colon."""
    name = config.name_or_path or ""
    module, _, function = name.rpartition(".")
    package = module.partition(".")[0]
    if not package.isidentifier() or "/" in name or Path(name).exists():
        return
    with suppress(ValueError):  # a module without a spec, such as __main__
        if find_spec(package) is not None:
            raise ModelLoadError(
                f"name_or_path={name!r}: no such directory. Hint: for a Python function, write "
                f"'{module}:{function}'"
            )


def load_reward(
    config: RewardConfig, lm_fingerprint: str | None = None, model: object | None = None
) -> RewardModel:
    """Load a reward model.

    Args:
        config: A reward config of any kind.
        lm_fingerprint: Fingerprint of the language model's tokenizer, which the reward model may
            share.
        model: The language model, whose hidden states a `ValueReward` reads.

    Raises:
        ModelLoadError: The reward model cannot be loaded.
        MissingExtraError: A required package is not installed.
    """
    if isinstance(config, CompositeReward):
        from stars_engine.rewards.composite import CompositeRewardModel

        parts = {
            name: load_reward(part.reward, lm_fingerprint, model)
            for name, part in config.parts.items()
        }
        return CompositeRewardModel(config, parts)
    if isinstance(config, FunctionReward):
        from stars_engine.rewards.function import FunctionRewardModel

        return FunctionRewardModel(config)
    if isinstance(config, GuardrailReward):
        with needs_extra("guardrails"):
            from stars_engine.rewards.guardrail import GuardrailRewardModel
        return GuardrailRewardModel(config)
    if isinstance(config, ServerReward | ServerYesNoReward | ServerProcessReward | VLLMReward):
        return _load_served(config, lm_fingerprint)
    return _load_local(config, lm_fingerprint, model)


def _load_served(
    config: ServerReward | ServerYesNoReward | ServerProcessReward | VLLMReward,
    lm_fingerprint: str | None,
) -> RewardModel:
    if isinstance(config, VLLMReward):
        with needs_extra("vllm"):
            from stars_engine.rewards.vllm import VLLMRewardModel
        return VLLMRewardModel(config, lm_fingerprint)
    with needs_extra("remote"):
        from stars_engine.rewards.server import ServerRewardModel
        from stars_engine.rewards.server_steps import ServerProcessRewardModel
        from stars_engine.rewards.server_yes_no import ServerYesNoRewardModel
    if isinstance(config, ServerReward):
        return ServerRewardModel(config, lm_fingerprint)
    if isinstance(config, ServerYesNoReward):
        return ServerYesNoRewardModel(config)
    return ServerProcessRewardModel(config)


def _load_local(
    config: ClassifierReward | ProcessReward | GuardReward | ValueReward | YesNoReward,
    lm_fingerprint: str | None,
    model: object | None,
) -> RewardModel:
    with needs_extra("local"):
        from stars_engine.rewards.classifier import ClassifierRewardModel
        from stars_engine.rewards.guard import GuardRewardModel
        from stars_engine.rewards.process import ProcessRewardModel
        from stars_engine.rewards.value import ValueRewardModel
        from stars_engine.rewards.yes_no import YesNoRewardModel
    if isinstance(config, ClassifierReward):
        return ClassifierRewardModel(config, lm_fingerprint)
    if isinstance(config, ProcessReward):
        return ProcessRewardModel(config)
    if isinstance(config, GuardReward):
        return GuardRewardModel(config, lm_fingerprint)
    if isinstance(config, ValueReward):
        return ValueRewardModel(config, model)
    return YesNoRewardModel(config)
