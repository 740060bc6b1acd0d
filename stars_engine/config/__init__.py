"""Config objects: frozen, validated without I/O, readable from and writable to YAML and JSON."""

from stars_engine.config.engine import EngineParams
from stars_engine.config.models import EMBEDDED_LM, EMBEDDED_REWARD, TransformersModel
from stars_engine.config.params import AlignParams, SamplingParams
from stars_engine.config.rewards import (
    ClassifierReward,
    CompositeReward,
    FunctionReward,
    ProcessReward,
    RewardConfig,
    RewardPart,
    YesNoReward,
)
from stars_engine.config.root import StarsConfig

__all__ = [
    "EMBEDDED_LM",
    "EMBEDDED_REWARD",
    "AlignParams",
    "ClassifierReward",
    "CompositeReward",
    "EngineParams",
    "FunctionReward",
    "ProcessReward",
    "RewardConfig",
    "RewardPart",
    "SamplingParams",
    "StarsConfig",
    "TransformersModel",
    "YesNoReward",
]
