"""Compare arms of generation on the same prompts: does it align, what does it cost, when it fails.

Needs the extra `eval`.
"""

from stars_engine.evaluation.arms import (
    BestOfNArm,
    BlockwiseArm,
    PlainTarget,
    RejectionArm,
    StarsArm,
    VanillaArm,
)
from stars_engine.evaluation.evaluate import evaluate
from stars_engine.evaluation.figures import Evaluation
from stars_engine.evaluation.prompts import PromptSet
from stars_engine.evaluation.recipe import Guards, Recipe, TrustSettings, read_recipe, recipe_names
from stars_engine.evaluation.report import write_reports

__all__ = [
    "BestOfNArm",
    "BlockwiseArm",
    "Evaluation",
    "Guards",
    "PlainTarget",
    "PromptSet",
    "Recipe",
    "RejectionArm",
    "StarsArm",
    "TrustSettings",
    "VanillaArm",
    "evaluate",
    "read_recipe",
    "recipe_names",
    "write_reports",
]
