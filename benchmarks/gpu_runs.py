"""The device that `benchmarks.gpu_checks` tests, and runs of an engine on it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.pair import Pair, Size
from stars_engine import (
    AlignParams,
    ConstantSchedule,
    EngineParams,
    SamplingParams,
    StarsConfig,
    StarsEngine,
)
from stars_engine.types import TokenIds

LENGTHS = (200, 37, 150, 64, 90, 41, 128, 33)  # of the prompts that run together
NUM_TOKENS = 64

Figures = dict[str, Any]


@dataclass
class Bench:
    """The device, and the pairs of random models that checks share.

    Attributes:
        device: The device under test.
        size: Shapes of the pair.
        clock: Returns the seconds that a call takes, with the device synchronized.
    """

    device: str
    size: Size
    clock: Callable[[Callable[[], Any]], float]

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a CUDA device."""
        return self.device.startswith("cuda")

    def pair(self, dtype: torch.dtype, longest: int = 512) -> Pair:
        """Create both models; the caller drops them."""
        self.free()
        return Pair(self.size, dtype, longest, self.device, self.clock)

    def free(self) -> None:
        """Return unused memory to the device."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()


def random_prompts(pair: Pair, lengths: Sequence[int]) -> list[tuple[int, ...]]:
    """Return a random prompt of each length."""
    return [pair.prompt(length, index) for index, length in enumerate(lengths)]


def generate(
    pair: Pair,
    prompts: Sequence[Sequence[int]],
    threshold: float,
    num_candidates: int | str,
    *,
    alone: bool = False,
    engine_params: EngineParams | None = None,
    num_tokens: int = NUM_TOKENS,
) -> list[tuple[int, ...]]:
    """Return the token ids that an engine over the pair writes after each prompt.

    Args:
        pair: The models.
        prompts: Token ids.
        threshold: What a candidate's reward must reach; half of them do about.
        num_candidates: Candidates drafted at once.
        alone: Whether prompts run one after the other.
        engine_params: Limits of the engine.
        num_tokens: Tokens of each answer.
    """
    schedule = ConstantSchedule(value=threshold)
    config = StarsConfig(
        align=AlignParams(
            schedule=schedule, segment_len=16, beta=0.05, num_candidates=num_candidates
        ),
        sampling=SamplingParams(max_tokens=num_tokens, seed=3, top_k=40),
        engine=engine_params or EngineParams(),
    )
    calls = [[prompt] for prompt in prompts] if alone else [list(prompts)]
    with StarsEngine(config, model=pair.lm, reward=pair.rm) as engine:
        return [
            tuple(result.token_ids)
            for call in calls
            for result in engine.generate([TokenIds(ids) for ids in call])
        ]
