"""Config objects of arms: the ways to generate that an evaluation compares."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from stars_engine.config import AlignParams, Alternative, ModelConfig, RewardConfig
from stars_engine.config.presets import preset
from stars_engine.config.rewards import as_reward
from stars_engine.config.root import as_model
from stars_engine.schedules import CalibratedSchedule, ConstantSchedule, LinearSchedule, NoSchedule
from stars_engine.schema import Schema


class PlainTarget(Schema):
    """A threshold relative to the guide's rewards of plain answers to the tuning prompts."""

    best_of: int = Field(
        default=1,
        ge=1,
        description="start from the mean reward of the best of so many plain answers",
        examples=[16],
    )
    offset_sigmas: float = Field(
        default=0.0,
        allow_inf_nan=False,
        description="added to it: standard deviations of plain rewards among answers to one prompt",
        examples=[0.5],
    )


class BaseArm(Schema):
    """What all arms share."""

    model: ModelConfig | None = Field(
        default=None,
        description="another language model than the recipe's, such as an SFT or DPO checkpoint",
        examples=["out/dpo"],
    )
    reward: RewardConfig | None = Field(
        default=None, description="another guide than the recipe's", examples=["out/outcome-guide"]
    )
    prefix_noise: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="standard deviation of noise added to the guide's reward of unfinished text, "
        "in reward units: how much unreliable prefix rewards cost",
        examples=[1.0],
    )

    @field_validator("model", mode="before")
    @classmethod
    def _model_by_name(cls, value: object) -> object:
        return as_model(value)

    @field_validator("reward", mode="before")
    @classmethod
    def _reward_by_name(cls, value: object) -> object:
        return as_reward(value)

    @property
    def has_recipe_models(self) -> bool:
        """Whether the language model and the guide are those of the recipe, unchanged."""
        return self.model is None and self.reward is None and not self.prefix_noise

    @property
    def base_align(self) -> AlignParams | None:
        """Acceptance settings before thresholds are resolved; None for the recipe's."""
        return AlignParams(schedule=NoSchedule())

    @property
    def base_target(self) -> PlainTarget | None:
        """The threshold relative to plain answers, if the arm has one."""
        return None

    @property
    def base_tilt(self) -> float:
        """See `StarsArm.tilt`."""
        return 0.0


class PlainArm(BaseArm):
    """What arms without acceptance settings of their own share."""

    alternatives: tuple[Alternative, ...] | None = Field(
        default=None,
        description="other prompts or openings from which draws are proposed; a share of 1 "
        "replaces the prompt; None: those of the recipe's `config.align`",
        examples=[[{"system": "Decline what could harm someone.", "share": 1.0}]],
    )

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        AlignParams(alternatives=self.alternatives or ())
        return self


class VanillaArm(PlainArm):
    """Plain sampling; with `model`, of another model."""

    kind: Literal["vanilla"] = "vanilla"


class BestOfNArm(PlainArm):
    """Sample whole answers and keep the one with the highest reward."""

    kind: Literal["best_of_n"] = "best_of_n"
    n: int = Field(ge=1, description="whole answers per kept answer", examples=[16])


class StarsArm(BaseArm):
    """Segment-level rejection sampling with any schedule.

    An `AutoSchedule` without prompts is calibrated on the recipe's tuning prompts.
    """

    kind: Literal["stars"] = "stars"
    align: AlignParams | None = Field(
        default=None,
        description="acceptance settings, or the name of a preset; None: the recipe's",
        examples=[{"schedule": {"kind": "auto", "budget": 2.7}, "segment_len": 8}],
    )
    target: PlainTarget | None = Field(
        default=None,
        description="replaces the target of a linear, or the value of a constant schedule by a "
        "threshold relative to plain answers",
        examples=[{"best_of": 16}],
    )
    tilt: float = Field(
        default=0.0,
        allow_inf_nan=False,
        description="moves effort along the answer: a calibrated threshold changes linearly, from "
        "-tilt/2 standard deviations of a stage at the first segment to +tilt/2 at the last",
        examples=[1.5],
    )

    @field_validator("align", mode="before")
    @classmethod
    def _align_by_name(cls, value: object) -> object:
        return preset(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _target_has_a_place(self) -> Self:
        schedule = None if self.align is None else self.align.schedule
        if self.target is not None and not isinstance(schedule, LinearSchedule | ConstantSchedule):
            raise ValueError(
                "target needs a linear or constant schedule. Hint: "
                "align={'schedule': {'kind': 'linear', 'target': 0}}, whose target is replaced"
            )
        if self.tilt and isinstance(schedule, LinearSchedule | ConstantSchedule | NoSchedule):
            raise ValueError(
                "tilt needs calibrated thresholds. Hint: align={'schedule': {'kind': 'auto'}}"
            )
        return self

    @property
    def base_align(self) -> AlignParams | None:
        """See `BaseArm`."""
        return self.align

    @property
    def base_target(self) -> PlainTarget | None:
        """See `BaseArm`."""
        return self.target

    @property
    def base_tilt(self) -> float:
        """See `BaseArm`."""
        return self.tilt


class RejectionArm(PlainArm):
    """Rejection sampling of whole answers: draw until the reward reaches a threshold."""

    kind: Literal["rejection"] = "rejection"
    target: PlainTarget | float = Field(
        description="the threshold: a number in reward units, or relative to plain answers",
        examples=[{"best_of": 4}],
    )
    beta: float = Field(default=0.0, ge=0, description="acceptance softness in reward units")
    max_attempts: int = Field(default=20, ge=1, description="maximum whole answers")

    def align_for(self, max_tokens: int) -> AlignParams:
        """Return settings under which one segment is the whole answer."""
        value = self.target if isinstance(self.target, float | int) else 0.0
        return AlignParams(
            schedule=ConstantSchedule(value=value),
            segment_len=max_tokens,
            beta=self.beta,
            max_attempts=self.max_attempts,
        )

    @property
    def base_target(self) -> PlainTarget | None:
        """See `BaseArm`."""
        return self.target if isinstance(self.target, PlainTarget) else None


class BlockwiseArm(PlainArm):
    """Draft each segment `m` times and keep the draft with the highest reward."""

    kind: Literal["blockwise"] = "blockwise"
    m: int = Field(ge=1, description="drafts per segment", examples=[4])
    segment_len: int = Field(default=32, ge=1, description="tokens judged together", examples=[8])

    @property
    def base_align(self) -> AlignParams | None:
        """See `BaseArm`."""
        return AlignParams(schedule=NoSchedule(), max_attempts=self.m, segment_len=self.segment_len)


Arm = Annotated[
    VanillaArm | BestOfNArm | StarsArm | RejectionArm | BlockwiseArm,
    Field(discriminator="kind"),
]
AnyArm = VanillaArm | BestOfNArm | StarsArm | RejectionArm | BlockwiseArm


def tilted(schedule: CalibratedSchedule, tilt: float) -> CalibratedSchedule:
    """Return thresholds that rise by `tilt` standard deviations over the answer; see `StarsArm`."""
    last = max(1, len(schedule.stages) - 1)
    stages = [
        stage.replace(offset=stage.offset + tilt * (index / last - 0.5) * stage.sigma)
        for index, stage in enumerate(schedule.stages)
    ]
    return schedule.replace(stages=tuple(stages), predicted=None, curve=())
