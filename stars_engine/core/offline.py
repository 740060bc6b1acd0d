"""Run the algorithms on a list of rollouts, without an engine thread, for tests and scripts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stars_engine.algorithm.baselines import PlainDecoding, keep_best, samples_of, unjudged
from stars_engine.algorithm.rollout import Rollout
from stars_engine.algorithm.stars import StarsDecoding, warn_of_greedy
from stars_engine.algorithm.verification import DecodingStrategy
from stars_engine.backends.base import LanguageModel
from stars_engine.core.engine_core import EngineCore
from stars_engine.core.request import Request, RequestQueue
from stars_engine.rewards.base import RewardModel
from stars_engine.types import SegmentEvent


def run(
    rollouts: Sequence[Rollout],
    model: LanguageModel,
    reward: RewardModel,
    decoding: DecodingStrategy,
) -> Iterator[SegmentEvent]:
    """Run rollouts until all are finished; yield each segment as it is kept."""
    core = EngineCore(model)
    core.add(RequestQueue.of(Request(rollout, reward, decoding) for rollout in rollouts))
    while core.has_unfinished:
        for _, event in core.step():
            yield event


def stars(
    rollouts: Sequence[Rollout], model: LanguageModel, reward: RewardModel
) -> Iterator[SegmentEvent]:
    """Align rollouts; yield each segment as it is kept. The last of a rollout has its result.

    A rollout that fails ends with its `error` set. The others continue.
    """
    warn_of_greedy((rollout.sampling, rollout.align) for rollout in rollouts)
    return run(rollouts, model, reward, StarsDecoding())


def vanilla(
    rollouts: Sequence[Rollout], model: LanguageModel, reward: RewardModel
) -> Iterator[SegmentEvent]:
    """Sample plainly and score each finished answer once; see `PlainDecoding`."""
    for rollout in rollouts:
        rollout.align = unjudged(rollout.align)
    return run(rollouts, model, reward, PlainDecoding())


def best_of_n(
    rollouts: Sequence[Rollout], model: LanguageModel, reward: RewardModel, *, n: int
) -> Iterator[SegmentEvent]:
    """Sample `n` whole answers per rollout and keep the one with the highest reward.

    The samples share `max_drafted_tokens` equally. See `keep_best`.
    """
    groups = [list(samples_of(rollout, n)) for rollout in rollouts]
    samples = [sample for group in groups for sample in group]
    list(vanilla(samples, model, reward))  # runs all of them to their ends
    for rollout, group in zip(rollouts, groups, strict=True):
        yield keep_best(rollout, group)
