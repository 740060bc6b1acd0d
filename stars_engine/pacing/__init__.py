"""How many candidates each rollout of a round drafts.

The number changes speed, never text: candidates are walked in index order, and those after the
first accepted are never looked at.
"""

from stars_engine.pacing.allotment import Chances, allot
from stars_engine.pacing.costs import Curve, RoundCosts
from stars_engine.pacing.pacer import Pacer, Turn
from stars_engine.pacing.probe import probe_costs
from stars_engine.pacing.prospects import Prospects, SegmentDraws

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
