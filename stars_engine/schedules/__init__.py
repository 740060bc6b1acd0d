"""Threshold schedules: config objects that map progress and the prefix's reward to a threshold."""

from typing import Annotated

from pydantic import Field

from stars_engine.schedules.auto import AutoSchedule
from stars_engine.schedules.base import BaseSchedule, Progress
from stars_engine.schedules.calibrated import (
    CalibratedSchedule,
    CurvePoint,
    Effort,
    Estimate,
    Line,
    PrefixTrust,
)
from stars_engine.schedules.draw_limits import DrawLimit
from stars_engine.schedules.fixed import ConstantSchedule, NoSchedule, PerSegmentSchedule
from stars_engine.schedules.function import FunctionSchedule
from stars_engine.schedules.ramps import CosineSchedule, LinearSchedule

Schedule = Annotated[
    LinearSchedule
    | ConstantSchedule
    | CosineSchedule
    | PerSegmentSchedule
    | FunctionSchedule
    | CalibratedSchedule
    | AutoSchedule
    | NoSchedule,
    Field(discriminator="kind"),
]

__all__ = [
    "AutoSchedule",
    "BaseSchedule",
    "CalibratedSchedule",
    "ConstantSchedule",
    "CosineSchedule",
    "CurvePoint",
    "DrawLimit",
    "Effort",
    "Estimate",
    "FunctionSchedule",
    "Line",
    "LinearSchedule",
    "NoSchedule",
    "PerSegmentSchedule",
    "PrefixTrust",
    "Progress",
    "Schedule",
]
