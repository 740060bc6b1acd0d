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
from stars_engine.config.models import (
    EMBEDDED_LM,
    EMBEDDED_REWARD,
    EMBEDDED_VALUE,
    TransformersModel,
)
from stars_engine.config.rewards import RewardConfig
from stars_engine.config.rewards.classifier import ClassifierReward
from stars_engine.config.rewards.composite import CompositeReward, RewardPart
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
from stars_engine.config.root import ModelConfig, StarsConfig
from stars_engine.config.sampling import SamplingParams
from stars_engine.config.servers import OpenAIServerModel
from stars_engine.config.vllm import VLLMModel

__all__ = [
    "EMBEDDED_LM",
    "EMBEDDED_REWARD",
    "EMBEDDED_VALUE",
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
