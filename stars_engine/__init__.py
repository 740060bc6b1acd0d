"""STARS: align a language model's text while it is generated, without training.

Segment-level rejection sampling guided by a reward model (arXiv 2511.03827). Importing this package
loads neither torch nor transformers; the first use does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from stars_engine.near_names import near_name

if TYPE_CHECKING:
    from stars_engine.calibration.calibrate import calibrate
    from stars_engine.calibration.report import TrustReport, trust_report
    from stars_engine.calibration.standardize import standardize
    from stars_engine.calibration.verify import Verification, verify
    from stars_engine.config import (
        AlignParams,
        Alternative,
        ChoiceGrammar,
        ClassifierReward,
        CompositeReward,
        EbnfGrammar,
        EngineParams,
        FunctionReward,
        GuardrailReward,
        GuardReward,
        JsonGrammar,
        OpenAIServerModel,
        ProcessReward,
        RegexGrammar,
        RewardPart,
        SamplingParams,
        ServerProcessReward,
        ServerReward,
        ServerYesNoReward,
        StarsConfig,
        TransformersModel,
        ValueReward,
        VLLMModel,
        VLLMReward,
        YesNoReward,
    )
    from stars_engine.config.presets import preset
    from stars_engine.engine.engine import StarsEngine
    from stars_engine.errors import (
        AlignmentError,
        CalibrationStoppedError,
        ConfigError,
        ContextOverflowError,
        EngineClosedError,
        EngineForkedError,
        GenerationError,
        MissingExtraError,
        ModelLoadError,
        PromptError,
        QueueFullError,
        RequestError,
        RewardError,
        ScheduleError,
        ServerError,
        StarsError,
        StarsWarning,
    )
    from stars_engine.guides.report import GuideReport
    from stars_engine.guides.train import train_guide
    from stars_engine.messages import Chat, InvalidToolCall, Message, Tool, ToolCall
    from stars_engine.runtime.stats import EngineStats
    from stars_engine.schedules import (
        AutoSchedule,
        CalibratedSchedule,
        ConstantSchedule,
        CosineSchedule,
        FunctionSchedule,
        LinearSchedule,
        NoSchedule,
        PerSegmentSchedule,
    )
    from stars_engine.types import (
        Attempt,
        RenderedPrompt,
        Segment,
        SegmentEvent,
        StarsResult,
        TokenIds,
        Usage,
    )

_HOMES = {
    "stars_engine.calibration.calibrate": "calibrate",
    "stars_engine.calibration.report": "TrustReport trust_report",
    "stars_engine.calibration.standardize": "standardize",
    "stars_engine.calibration.verify": "Verification verify",
    "stars_engine.config.presets": "preset",
    "stars_engine.config": (
        "AlignParams Alternative ChoiceGrammar ClassifierReward CompositeReward EbnfGrammar "
        "EngineParams "
        "FunctionReward GuardReward GuardrailReward JsonGrammar OpenAIServerModel ProcessReward "
        "RegexGrammar RewardPart SamplingParams ServerProcessReward ServerReward ServerYesNoReward "
        "StarsConfig TransformersModel VLLMModel VLLMReward ValueReward YesNoReward"
    ),
    "stars_engine.engine.engine": "StarsEngine",
    "stars_engine.runtime.stats": "EngineStats",
    "stars_engine.errors": (
        "AlignmentError CalibrationStoppedError ConfigError ContextOverflowError "
        "EngineClosedError EngineForkedError GenerationError MissingExtraError ModelLoadError "
        "PromptError QueueFullError RequestError RewardError ScheduleError ServerError StarsError "
        "StarsWarning"
    ),
    "stars_engine.schedules": (
        "AutoSchedule CalibratedSchedule ConstantSchedule CosineSchedule FunctionSchedule "
        "LinearSchedule NoSchedule PerSegmentSchedule"
    ),
    "stars_engine.guides.report": "GuideReport",
    "stars_engine.guides.train": "train_guide",
    "stars_engine.messages": "Chat InvalidToolCall Message Tool ToolCall",
    "stars_engine.types": "Attempt RenderedPrompt Segment SegmentEvent StarsResult TokenIds Usage",
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = [
    "AlignParams",
    "AlignmentError",
    "Alternative",
    "Attempt",
    "AutoSchedule",
    "CalibratedSchedule",
    "CalibrationStoppedError",
    "Chat",
    "ChoiceGrammar",
    "ClassifierReward",
    "CompositeReward",
    "ConfigError",
    "ConstantSchedule",
    "ContextOverflowError",
    "CosineSchedule",
    "EbnfGrammar",
    "EngineClosedError",
    "EngineForkedError",
    "EngineParams",
    "EngineStats",
    "FunctionReward",
    "FunctionSchedule",
    "GenerationError",
    "GuardReward",
    "GuardrailReward",
    "GuideReport",
    "InvalidToolCall",
    "JsonGrammar",
    "LinearSchedule",
    "Message",
    "MissingExtraError",
    "ModelLoadError",
    "NoSchedule",
    "OpenAIServerModel",
    "PerSegmentSchedule",
    "ProcessReward",
    "PromptError",
    "QueueFullError",
    "RegexGrammar",
    "RenderedPrompt",
    "RequestError",
    "RewardError",
    "RewardPart",
    "SamplingParams",
    "ScheduleError",
    "Segment",
    "SegmentEvent",
    "ServerError",
    "ServerProcessReward",
    "ServerReward",
    "ServerYesNoReward",
    "StarsConfig",
    "StarsEngine",
    "StarsError",
    "StarsResult",
    "StarsWarning",
    "TokenIds",
    "Tool",
    "ToolCall",
    "TransformersModel",
    "TrustReport",
    "Usage",
    "VLLMModel",
    "VLLMReward",
    "ValueReward",
    "Verification",
    "YesNoReward",
    "calibrate",
    "preset",
    "standardize",
    "train_guide",
    "trust_report",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        value = getattr(importlib.import_module(_HOME_OF[name]), name)
        globals()[name] = value
        return value
    near = near_name(name, _HOME_OF)
    hint = f". Did you mean: {near!r}?" if near else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")


def __dir__() -> list[str]:
    return sorted(__all__)
