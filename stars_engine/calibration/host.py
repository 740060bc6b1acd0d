"""What calibration asks of an engine: the engine, a floor above, calibrates itself."""

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
    """An engine, as calibration sees it; see `StarsEngine`."""

    config: StarsConfig

    @property
    def sampling(self) -> SamplingParams:
        """Sampling where a call gives none."""
        ...

    @property
    def model(self) -> Any:
        """The language model."""
        ...

    @property
    def reward(self) -> Any:
        """The reward model."""
        ...

    @property
    def has_chat_template(self) -> bool:
        """Whether the language model brings a chat template."""
        ...

    @property
    def closed(self) -> bool:
        """Whether it takes no more calls."""
        ...

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        sampling: SamplingParams | None = None,
        align: AlignParams | None = None,
        reward_prompt: RewardPrompts = None,
    ) -> list[StarsResult]:
        """Align answers."""
        ...

    def decode(
        self,
        prompts: Sequence[Prompt],
        decoding: DecodingStrategy,
        *,
        sampling: SamplingParams | None = None,
        align: AlignParams | None = None,
        reward_prompt: RewardPrompts = None,
    ) -> list[StarsResult]:
        """Run a decoding of one's own."""
        ...

    def resume(self, rollouts: Sequence[Rollout], decoding: DecodingStrategy) -> list[StarsResult]:
        """Run a decoding of one's own on answers that have begun."""
        ...
