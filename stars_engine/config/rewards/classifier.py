"""Config objects of sequence classifiers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stars_engine.config.models import EMBEDDED_REWARD
from stars_engine.config.rewards.answers import ClassifiesAnswers
from stars_engine.config.rewards.common import Aggregating


class ClassifierReward(ClassifiesAnswers, Aggregating):
    """A sequence classifier that reads the prompt and the answer so far."""

    kind: Literal["classifier"] = "classifier"
    aggregate: Literal["last", "mean", "ema"] = Field(
        default="last",
        description="how the scores of a causal model after each token of the answer become one "
        "reward: the last one, their mean, or their exponential moving average (see half_life)",
        examples=["mean"],
    )

    @property
    def is_embedded(self) -> bool:
        """Whether this is the reward inside the package, on the scale of its thresholds."""
        return (
            self.name_or_path == EMBEDDED_REWARD
            and self.output == "logit"
            and self.aggregate == "last"
            and self.template is None
        )
