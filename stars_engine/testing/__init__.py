"""Contract tests for custom models, and tools that test output distributions exactly."""

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
