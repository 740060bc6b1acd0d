"""Config objects: frozen, validated without I/O, loaded from and saved to YAML and JSON."""

from stars_engine.config.align import AlignParams
from stars_engine.config.alternatives import Alternative
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
    GuardrailReward,
    GuardReward,
    ProcessReward,
    RewardConfig,
    RewardPart,
    ServerProcessReward,
    ServerReward,
    ServerYesNoReward,
    ValueReward,
    VLLMReward,
    YesNoReward,
)
from stars_engine.config.root import ModelConfig, StarsConfig
from stars_engine.config.sampling import SamplingParams
from stars_engine.config.servers import OpenAIServerModel
from stars_engine.config.vllm import VLLMModel

__all__ = [
    "EMBEDDED_LM",
    "EMBEDDED_REWARD",
    "AlignParams",
    "Alternative",
    "ChoiceGrammar",
    "ClassifierReward",
    "CompositeReward",
    "EbnfGrammar",
    "EngineParams",
    "FunctionReward",
    "Grammar",
    "GuardReward",
    "GuardrailReward",
    "JsonGrammar",
    "ModelConfig",
    "OpenAIServerModel",
    "ProcessReward",
    "RegexGrammar",
    "RewardConfig",
    "RewardPart",
    "SamplingParams",
    "ServerProcessReward",
    "ServerReward",
    "ServerYesNoReward",
    "StarsConfig",
    "TransformersModel",
    "VLLMModel",
    "VLLMReward",
    "ValueReward",
    "YesNoReward",
]
