"""Choose how many candidates each request of a step drafts.

The number changes speed, never text: candidates are verified in index order, and those after the
first accepted one are never used.
"""

from stars_engine.core.autotune.acceptance_estimates import AcceptanceEstimates, SegmentDraws
from stars_engine.core.autotune.allocation import Chances, allocate_rows
from stars_engine.core.autotune.autotuner import CandidateAutotuner
from stars_engine.core.autotune.cost_probe import probe_costs
from stars_engine.core.autotune.step_costs import StepCostCurve, StepCosts
from stars_engine.core.autotune.step_limits import StepLimits

__all__ = [
    "AcceptanceEstimates",
    "CandidateAutotuner",
    "Chances",
    "SegmentDraws",
    "StepCostCurve",
    "StepCosts",
    "StepLimits",
    "allocate_rows",
    "probe_costs",
]
