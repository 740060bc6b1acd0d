"""How many candidates each rollout of a round drafts.

The number changes speed, never text: candidates are walked in index order, and those after the
first accepted are never looked at.
"""

from stars_engine.core.autotune.acceptance_estimates import Prospects, SegmentDraws
from stars_engine.core.autotune.allocation import Chances, allot
from stars_engine.core.autotune.autotuner import Pacer, Turn
from stars_engine.core.autotune.cost_probe import probe_costs
from stars_engine.core.autotune.step_costs import Curve, RoundCosts

__all__ = [
    "Chances",
    "Curve",
    "Pacer",
    "Prospects",
    "RoundCosts",
    "SegmentDraws",
    "Turn",
    "allot",
    "probe_costs",
]
