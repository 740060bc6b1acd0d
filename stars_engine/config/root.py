"""The complete configuration of an engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, field_validator, model_validator

from stars_engine.config.align import AlignParams
from stars_engine.config.engine import EngineParams
from stars_engine.config.models import EMBEDDED_LM, EMBEDDED_REWARD, TransformersModel
from stars_engine.config.presets import preset
from stars_engine.config.rewards import RewardConfig, as_reward
from stars_engine.config.rewards.classifier import ClassifierReward
from stars_engine.config.rewards.value import ValueReward
from stars_engine.config.sampling import SamplingParams
from stars_engine.config.servers import OpenAIServerModel
from stars_engine.config.vllm import VLLMModel
from stars_engine.errors import Problem
from stars_engine.files.config_files import Filed
from stars_engine.schedules import AutoSchedule, LinearSchedule
from stars_engine.template_variables import check_template_kwargs


@cache
def embedded_align() -> AlignParams:
    """The alignment settings shipped with the embedded pair."""
    return AlignParams(**_embedded("align.yaml"))


@cache
def embedded_ramp() -> LinearSchedule:
    """Thresholds of the embedded pair for settings other than those it was calibrated with."""
    return LinearSchedule(**_embedded("ramp.yaml"))


def _embedded(file: str) -> dict[str, Any]:
    text = (resources.files("stars_engine") / "embedded" / file).read_text()
    values: dict[str, Any] = yaml.safe_load(text)
    return values


ModelConfig = Annotated[
    TransformersModel | OpenAIServerModel | VLLMModel, Field(discriminator="kind")
]


def as_model(value: object) -> object:
    """Convert a name, or fields without a kind, to the fields of a config object."""
    if isinstance(value, str):
        return {"kind": "transformers", "name_or_path": value}
    if isinstance(value, Mapping) and "kind" not in value:
        return {"kind": "server" if "base_url" in value else "transformers", **value}
    return value


# The settings that calibrated thresholds depend on.
_MEASURED_WITH = (
    *("segment_len", "beta", "segment_end", "min_segment_len", "max_entropy", "lookahead"),
)


class StarsConfig(Filed):
    """The configuration of an engine. `StarsConfig()` is the embedded pair, without downloads."""

    model: ModelConfig = Field(
        default_factory=lambda: TransformersModel(name_or_path=EMBEDDED_LM),
        description="the language model; a name alone means TransformersModel(name_or_path=name), "
        "and fields with base_url mean OpenAIServerModel",
        examples=["Qwen/Qwen2.5-1.5B-Instruct"],
    )
    reward: RewardConfig = Field(
        default_factory=lambda: ClassifierReward(name_or_path=EMBEDDED_REWARD),
        description="the reward model; a name alone means ClassifierReward, a callable or "
        "'package.module:name' FunctionReward",
        examples=["Skywork/Skywork-Reward-V2-Qwen3-0.6B"],
    )
    align: AlignParams = Field(
        default_factory=embedded_align,
        description="how segments are accepted; a name means preset(name). By default, the "
        "embedded pair uses its shipped settings, and the engine calibrates other models",
        examples=["best"],
    )
    sampling: SamplingParams | Literal["model"] = Field(
        default_factory=SamplingParams,
        description="how tokens are sampled; 'model' uses the checkpoint's generation config",
        examples=["model"],
    )
    prompt_format: Literal["auto", "chat", "raw", "rendered"] = Field(
        default="auto",
        description="how to read a string prompt: 'chat' as a user message, 'raw' as text to "
        "continue, 'auto' as a user message if the model has a chat template, 'rendered' as text "
        "of a chat template, whose control tokens are parsed (never for untrusted text)",
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default={},
        description="variables for the language model's chat template, a JSON object; a Chat can "
        "override them",
        examples=[{"enable_thinking": False}],
    )
    engine: EngineParams = Field(
        default_factory=EngineParams, description="limits on concurrent work and memory"
    )
    schema_version: Literal[1] = Field(default=1, description="version of this file's layout")

    @field_validator("model", mode="before")
    @classmethod
    def _model_by_name(cls, value: object) -> object:
        return as_model(value)

    @field_validator("reward", mode="before")
    @classmethod
    def _reward_by_name(cls, value: Any) -> Any:
        return as_reward(value)

    @field_validator("align", mode="before")
    @classmethod
    def _align_by_name(cls, value: object) -> object:
        return preset(value) if isinstance(value, str) else value

    @field_validator("chat_template_kwargs")
    @classmethod
    def _of_the_template(cls, kwargs: dict[str, Any]) -> dict[str, Any]:
        return check_template_kwargs(kwargs)

    @model_validator(mode="after")
    def _pair_belongs_together(self) -> Self:
        if self.uses_embedded_pair:
            return self
        missing = [name for name in ("model", "reward") if name not in self.model_fields_set]
        if missing and not (isinstance(self.reward, ValueReward) and self.reward.is_embedded):
            raise ValueError(
                f"{missing[0]} is required: the default is the pair in the package, a language "
                "model of movie reviews and a reward model of their sentiment, and applies to both "
                f"or neither. Hint: set {missing[0]} too; stars:embedded-lm and "
                "stars:embedded-reward name the two"
            )
        if "align" not in self.model_fields_set:
            # The default settings are for the embedded pair and do not apply to other models.
            object.__setattr__(self, "align", self._own_align())
        return self

    def _own_align(self) -> AlignParams:
        allowed_from = self.reward.allowed_from
        if allowed_from is None:
            return AlignParams()
        return preset("guard", threshold=allowed_from)

    @property
    def uses_embedded_pair(self) -> bool:
        """Whether both models are those inside the package."""
        is_embedded = (
            isinstance(self.model, TransformersModel) and self.model.name_or_path == EMBEDDED_LM
        )
        return is_embedded and (
            isinstance(self.reward, ClassifierReward) and self.reward.is_embedded
        )

    def unwritable(self) -> Iterator[Problem]:
        """Return a problem for each value that cannot be written to a file."""
        parts = {"model": self.model, "reward": self.reward, "align.schedule": self.align.schedule}
        for name, part in parts.items():
            for problem in () if part is None else part.unwritable():
                yield problem.under(name)

    def with_thresholds(self, align: AlignParams | None = None) -> AlignParams:
        """Return alignment settings with a schedule: their own, the config's, or the default.

        Without thresholds, the engine calibrates a pair of models. The thresholds of the embedded
        pair were calibrated for its own settings; with other settings, it uses a ramp.
        """
        align = self.align if align is None else align
        default = embedded_align().schedule if self.uses_embedded_pair else AutoSchedule()
        schedule = align.schedule or self.align.schedule or default
        own = {name: getattr(align, name) for name in align.model_fields_set}
        if self.uses_embedded_pair and schedule == default and _measured_otherwise(own):
            ramp = {"segment_len": embedded_align().segment_len, **own, "schedule": embedded_ramp()}
            return AlignParams(**ramp)
        if align.schedule is not None:
            return align
        # Build it anew, because explicit settings take precedence over those of the schedule.
        return AlignParams(**{**own, "schedule": schedule})


def _measured_otherwise(own: Mapping[str, Any]) -> bool:
    """Whether these settings differ from those of the embedded pair's calibration."""
    shipped = embedded_align()
    differs = any(own[name] != getattr(shipped, name) for name in _MEASURED_WITH if name in own)
    return differs or any(each.share for each in own.get("alternatives", ()))
