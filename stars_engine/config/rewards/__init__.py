"""Config objects of reward models, one kind per file."""

from typing import Annotated

from pydantic import Field

from stars_engine.config.rewards.classifier import ClassifierReward
from stars_engine.config.rewards.composite import CompositeReward, RewardPart, as_reward
from stars_engine.config.rewards.function import FunctionReward
from stars_engine.config.rewards.guard import GuardrailReward, GuardReward
from stars_engine.config.rewards.process import ProcessReward
from stars_engine.config.rewards.server import (
    ServerProcessReward,
    ServerReward,
    ServerYesNoReward,
)
from stars_engine.config.rewards.value import ValueReward
from stars_engine.config.rewards.vllm import VLLMReward
from stars_engine.config.rewards.yes_no import YesNoReward

RewardConfig = Annotated[
    ClassifierReward
    | ProcessReward
    | YesNoReward
    | ValueReward
    | GuardReward
    | GuardrailReward
    | FunctionReward
    | ServerReward
    | ServerYesNoReward
    | ServerProcessReward
    | VLLMReward
    | CompositeReward,
    Field(discriminator="kind"),
]

__all__ = [
    "ClassifierReward",
    "CompositeReward",
    "FunctionReward",
    "GuardReward",
    "GuardrailReward",
    "ProcessReward",
    "RewardConfig",
    "RewardPart",
    "ServerProcessReward",
    "ServerReward",
    "ServerYesNoReward",
    "VLLMReward",
    "ValueReward",
    "YesNoReward",
    "as_reward",
]
