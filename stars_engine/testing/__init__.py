"""The contract for people's own parts, and the tools that test the law exactly."""

from stars_engine.testing.contracts import check_backend, check_reward_model
from stars_engine.testing.enumerator import enumerate_law
from stars_engine.testing.toy import TableReward, TabularModel

__all__ = [
    "TableReward",
    "TabularModel",
    "check_backend",
    "check_reward_model",
    "enumerate_law",
]
