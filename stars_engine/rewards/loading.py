"""Load reward models from config objects. Kinds that need torch import it when they load."""

from __future__ import annotations

from stars_engine.config import (
    ClassifierReward,
    CompositeReward,
    FunctionReward,
    ProcessReward,
    RewardConfig,
    ValueReward,
)
from stars_engine.config.models import Checkpoint
from stars_engine.errors import needs_extra
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
    elif isinstance(config, Checkpoint):
        with needs_extra("local"):
            from stars_engine.loading.sources import check_local
        check_local(config)


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
    if isinstance(config, ClassifierReward):
        with needs_extra("local"):
            from stars_engine.rewards.classifier import ClassifierRewardModel
        return ClassifierRewardModel(config, lm_fingerprint)
    if isinstance(config, ProcessReward):
        with needs_extra("local"):
            from stars_engine.rewards.process import ProcessRewardModel
        return ProcessRewardModel(config)
    if isinstance(config, ValueReward):
        with needs_extra("local"):
            from stars_engine.rewards.value import ValueRewardModel
        return ValueRewardModel(config, model)
    with needs_extra("local"):
        from stars_engine.rewards.yes_no import YesNoRewardModel
    return YesNoRewardModel(config)
