"""The interface of an engine that calibration uses, since the engine imports calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from stars_engine.algorithm.rollout import Rollout
from stars_engine.algorithm.verification import DecodingStrategy
from stars_engine.config import AlignParams, SamplingParams, StarsConfig
from stars_engine.messages import Chat
from stars_engine.types import Prompt, StarsResult

RewardPrompts = Sequence[str | Chat | None] | None


class Host(Protocol):
    """The engine to calibrate; implemented by `StarsEngine`."""

    config: StarsConfig

    @property
    def sampling(self) -> SamplingParams:
        """Default sampling parameters."""

    @property
    def model(self) -> Any:
        """The language model."""

    @property
    def reward(self) -> Any:
        """The reward model."""

    @property
    def has_chat_template(self) -> bool:
        """Whether the language model has a chat template."""

    @property
    def closed(self) -> bool:
        """Whether the engine is closed."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        sampling: SamplingParams | None = None,
        align: AlignParams | None = None,
        reward_prompt: RewardPrompts = None,
    ) -> list[StarsResult]:
        """Generate aligned answers."""

    def decode(
        self,
        prompts: Sequence[Prompt],
        decoding: DecodingStrategy,
        *,
        sampling: SamplingParams | None = None,
        align: AlignParams | None = None,
        reward_prompt: RewardPrompts = None,
    ) -> list[StarsResult]:
        """Generate with a custom decoding strategy."""

    def resume(self, rollouts: Sequence[Rollout], decoding: DecodingStrategy) -> list[StarsResult]:
        """Continue unfinished answers with a custom decoding strategy."""
