"""Config objects: frozen, validated without I/O, loaded from and saved to YAML and JSON."""

from stars_engine.config.align import AlignParams
from stars_engine.config.engine import EngineParams
from stars_engine.config.grammars import (
    ChoiceGrammar,
    EbnfGrammar,
    Grammar,
    JsonGrammar,
    RegexGrammar,
)
from stars_engine.config.models import EMBEDDED_LM, EMBEDDED_REWARD, TransformersModel
from stars_engine.config.rewards import (
    ClassifierReward,
    CompositeReward,
    FunctionReward,
    ProcessReward,
    RewardConfig,
    RewardPart,
    ValueReward,
    YesNoReward,
)
from stars_engine.config.root import StarsConfig
from stars_engine.config.sampling import SamplingParams

__all__ = [
    "EMBEDDED_LM",
    "EMBEDDED_REWARD",
    "AlignParams",
    "ChoiceGrammar",
    "ClassifierReward",
    "CompositeReward",
    "EbnfGrammar",
    "EngineParams",
    "FunctionReward",
    "Grammar",
    "JsonGrammar",
    "ProcessReward",
    "RegexGrammar",
    "RewardConfig",
    "RewardPart",
    "SamplingParams",
    "StarsConfig",
    "TransformersModel",
    "ValueReward",
    "YesNoReward",
]
