"""Load reward models from config objects. Kinds that need torch import it when they load."""

from __future__ import annotations

from stars_engine.config import (
    ClassifierReward,
    CompositeReward,
    FunctionReward,
    ProcessReward,
    RewardConfig,
    ServerProcessReward,
    ServerReward,
    ServerYesNoReward,
    ValueReward,
    VLLMReward,
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
    loaded: RewardModel
    if isinstance(config, CompositeReward):
        from stars_engine.rewards.composite import CompositeRewardModel

        parts = {
            name: load_reward(part.reward, lm_fingerprint, model)
            for name, part in config.parts.items()
        }
        loaded = CompositeRewardModel(config, parts)
    elif isinstance(config, FunctionReward):
        from stars_engine.rewards.function import FunctionRewardModel

        loaded = FunctionRewardModel(config)
    elif isinstance(config, ServerReward):
        with needs_extra("remote"):
            from stars_engine.rewards.server import ServerRewardModel
        loaded = ServerRewardModel(config, lm_fingerprint)
    elif isinstance(config, ServerYesNoReward):
        with needs_extra("remote"):
            from stars_engine.rewards.server_yes_no import ServerYesNoRewardModel
        loaded = ServerYesNoRewardModel(config)
    elif isinstance(config, ServerProcessReward):
        with needs_extra("remote"):
            from stars_engine.rewards.server_steps import ServerProcessRewardModel
        loaded = ServerProcessRewardModel(config)
    elif isinstance(config, VLLMReward):
        with needs_extra("vllm"):
            from stars_engine.rewards.vllm import VLLMRewardModel
        loaded = VLLMRewardModel(config, lm_fingerprint)
    elif isinstance(config, ClassifierReward):
        with needs_extra("local"):
            from stars_engine.rewards.classifier import ClassifierRewardModel
        loaded = ClassifierRewardModel(config, lm_fingerprint)
    elif isinstance(config, ProcessReward):
        with needs_extra("local"):
            from stars_engine.rewards.process import ProcessRewardModel
        loaded = ProcessRewardModel(config)
    elif isinstance(config, ValueReward):
        with needs_extra("local"):
            from stars_engine.rewards.value import ValueRewardModel
        loaded = ValueRewardModel(config, model)
    else:
        with needs_extra("local"):
            from stars_engine.rewards.yes_no import YesNoRewardModel
        loaded = YesNoRewardModel(config)
    return loaded
