"""Plain sampling and Best-of-N, by the same models, noise and signature as the loop."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from stars_engine.backends.base import LanguageModel
from stars_engine.errors import RewardError
from stars_engine.loop import end_at_bounds, run_rounds
from stars_engine.noise import Noise
from stars_engine.rewards.base import RewardModel, score_each
from stars_engine.rollout import Candidate, Draw, Rollout
from stars_engine.types import Attempt, SegmentEvent, Verdict


def vanilla(
    rollouts: Sequence[Rollout], model: LanguageModel, reward: RewardModel
) -> Iterator[SegmentEvent]:
    """Sample without judging; the finished answer is scored once, so that arms compare.

    Equal, token for token, to STARS that accepts everything: both use attempt stream 0.
    """
    return run_rounds(rollouts, model, reward, round_function=vanilla_round)


def vanilla_round(
    rollouts: Sequence[Rollout], model: LanguageModel, reward: RewardModel
) -> list[SegmentEvent]:
    """Draft one candidate per rollout and keep it."""
    events = end_at_bounds(rollouts)
    active = [rollout for rollout in rollouts if not rollout.finished]
    requests = [rollout.draft_request(attempt=0) for rollout in active]
    drafts = model.draft(requests) if requests else []
    candidates = [rollout.read(ids, model) for rollout, ids in zip(active, drafts, strict=True)]
    ending = [pair for pair in zip(active, candidates, strict=True) if pair[1].finish_reason]
    outcomes = score_each(reward, [rollout.reward_input(last) for rollout, last in ending])
    for (rollout, _), outcome in zip(ending, outcomes, strict=True):
        if isinstance(outcome, RewardError):
            events.append(rollout.fail(outcome))
            continue
        rollout.reward = outcome.value
        rollout.count(
            num_reward_calls=1,
            num_reward_tokens=outcome.num_tokens,
            num_ineligible=not outcome.eligible,
        )
    for rollout, candidate in zip(active, candidates, strict=True):
        if not rollout.finished:
            rollout.count(num_drafted_tokens=len(candidate.token_ids))
            events.append(rollout.keep(candidate, "accepted", None))
    return events


def best_of_n(
    rollouts: Sequence[Rollout], model: LanguageModel, reward: RewardModel, *, n: int
) -> Iterator[SegmentEvent]:
    """Sample `n` whole answers per rollout and keep the one of highest reward, first on ties.

    Sample i is attempt stream i. The result has one segment, the answer, whose attempts are the n
    samples. If no sample has an eligible reward, the answer is empty and `rejected`.
    """
    samples = [[_sample_of(rollout, stream) for stream in range(n)] for rollout in rollouts]
    for _ in vanilla([sample for group in samples for sample in group], model, reward):
        pass
    for rollout, group in zip(rollouts, samples, strict=True):
        yield _keep_best(rollout, group)


class StreamNoise:
    """The noise of one attempt stream, whatever attempt is asked for."""

    def __init__(self, noise: Noise, stream: int) -> None:
        self._noise, self._stream = noise, stream

    def token_uniforms(self, *, position: int, attempt: int, count: int) -> Sequence[float]:
        """See `Noise`."""
        return self._noise.token_uniforms(position=position, attempt=self._stream, count=count)

    def acceptance_uniform(self, *, position: int, attempt: int) -> float:
        """See `Noise`."""
        return self._noise.acceptance_uniform(position=position, attempt=self._stream)


def _sample_of(rollout: Rollout, stream: int) -> Rollout:
    return Rollout(
        prompt_ids=rollout.prompt_ids,
        reward_prompt=rollout.reward_prompt,
        sampling=rollout.sampling,
        align=rollout.align,
        noise=StreamNoise(rollout.noise, stream),
        started_s=rollout.started_s,
    )


def _keep_best(rollout: Rollout, samples: Sequence[Rollout]) -> SegmentEvent:
    failed = next((sample.error for sample in samples if sample.error is not None), None)
    if failed is not None:
        return rollout.fail(failed)
    for sample in samples:
        for name, amount in sample.costs.items():
            rollout.count(**{name: amount})
    eligible = [sample for sample in samples if _is_eligible(sample)]
    best = max(eligible, key=_reward_of, default=None)
    for sample in samples:
        rollout.draws.append(_as_draw(sample, "accepted" if sample is best else "rejected"))
    rollout.count(num_attempts=len(samples), num_accepted=best is not None)
    if best is None:
        return rollout.finish("rejected")
    draw = rollout.draws[samples.index(best)]
    return rollout.keep(draw.candidate, "accepted", draw.attempt)


def _as_draw(sample: Rollout, verdict: Verdict) -> Draw:
    attempt = Attempt(
        reward=_reward_of(sample),
        threshold=math.nan,  # nothing was asked of it
        acceptance_prob=math.nan,
        verdict=verdict,
        eligible=_is_eligible(sample),
        num_tokens=len(sample.token_ids),
        text=sample.text if sample.align.keep_rejected_text else None,
    )
    ids = tuple(sample.token_ids)
    return Draw(Candidate(ids, sample.text, ids, sample.finish_reason), attempt)


def _is_eligible(sample: Rollout) -> bool:
    return sample.reward is not None and not sample.costs.get("num_ineligible", 0)


def _reward_of(sample: Rollout) -> float:
    return math.nan if sample.reward is None else sample.reward
