"""Config objects of reward models, one kind per file."""

from typing import Annotated

from pydantic import Field

from stars_engine.config.rewards.composite import CompositeReward, SingleKind, as_reward

RewardConfig = Annotated[SingleKind | CompositeReward, Field(discriminator="kind")]

__all__ = ["RewardConfig", "as_reward"]
