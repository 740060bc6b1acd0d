"""Plain sampling and Best-of-N, with the same models and the same noise as STARS."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from stars_engine.algorithm.candidate import Candidate, Draw, ParsedDraft
from stars_engine.algorithm.noise import Noise
from stars_engine.algorithm.rollout import Rollout
from stars_engine.algorithm.scoring import reward_input
from stars_engine.algorithm.verification import DraftVerification, NumDrafts
from stars_engine.config import AlignParams
from stars_engine.errors import RewardError
from stars_engine.types import Attempt, FinishReason, SegmentEvent, Verdict


def unjudged(align: AlignParams) -> AlignParams:
    """Return settings without those that only judging segments needs: borders and lookahead."""
    if align.segment_end == "length" and not align.lookahead:
        return align
    return align.replace(segment_end="length", min_segment_len=None, max_entropy=None, lookahead=0)


class PlainDecoding:
    """The `DecodingStrategy` that keeps the first draft and scores only the whole answer.

    The reward of an answer that a limit (`max_drafted_tokens`, `deadline_s`) cuts is None. Tokens
    equal those of STARS when it accepts everything: both use attempt stream 0.
    """

    def num_drafts(self, rollout: Rollout) -> NumDrafts:
        """Return one."""
        return NumDrafts(1, 1)

    def first_draft(self, rollout: Rollout) -> int:
        """Return 0: each segment has one attempt."""
        return 0

    def open(self, rollout: Rollout, candidates: Sequence[Candidate]) -> DraftVerification:
        """Request the reward of a draft that ends the answer."""
        [candidate] = candidates
        ends = candidate.finish_reason is not None
        inputs = [reward_input(rollout, candidate)] if ends else []
        return DraftVerification(rollout, candidates, inputs)

    def verify(self, verification: DraftVerification) -> SegmentEvent | None:
        """Keep the draft, once its reward is known if one was requested."""
        rollout, [candidate] = verification.rollout, verification.candidates
        if not verification.all_used:
            outcome = verification.next_outcome()
            if outcome is None:
                return None
            if isinstance(outcome, RewardError):
                raise outcome
            rollout.reward, rollout.reward_parts = outcome.value, outcome.parts
            rollout.count(num_surplus_rewards=-1, num_ineligible=not outcome.eligible)
            rollout.count_reward(outcome)
        num_kept = len(candidate.token_ids)
        num_behind = candidate.num_generated_tokens - num_kept  # tokens after a stop string
        rollout.count(num_drafted_tokens=num_kept, num_surplus_tokens=num_behind)
        return rollout.keep(candidate, "accepted", None)


def samples_of(rollout: Rollout, n: int) -> Iterator[Rollout]:
    """Yield the plain rollouts from which the best is chosen; sample i uses attempt stream i.

    Each may draft an equal share of `max_drafted_tokens`, at least one token.
    """
    align, limit = unjudged(rollout.align), rollout.align.max_drafted_tokens
    if limit is not None:
        align = align.replace(max_drafted_tokens=max(1, limit // n))
    for stream in range(n):
        yield rollout.fork(align=align, noise=StreamNoise(rollout.noise, stream))


def keep_best(rollout: Rollout, samples: Sequence[Rollout]) -> SegmentEvent:
    """Make the best finished sample the rollout's answer: the highest reward, the first on ties.

    The result has one segment, the answer, whose attempts are the samples. If no sample has an
    eligible reward, the answer is empty. Its finish reason is then "rejected", or "budget" or
    "deadline" if that limit ended every sample before it was scored.
    """
    count_samples(rollout, samples)
    failed = next((sample.error for sample in samples if sample.error is not None), None)
    if failed is not None:
        return rollout.fail(failed)
    eligible = [sample for sample in samples if _is_eligible(sample)]
    best = max(eligible, key=_reward_of, default=None)
    for sample in samples:
        rollout.draws.append(_as_draw(sample, "accepted" if sample is best else "rejected"))
    rollout.count(num_attempts=len(samples), num_accepted=best is not None)
    if best is None:
        return rollout.finish(_empty_finish_reason(samples))
    draw = rollout.draws[samples.index(best)]
    return rollout.keep(draw.candidate, "accepted", draw.attempt)


def count_samples(rollout: Rollout, samples: Sequence[Rollout]) -> None:
    """Add what samples have cost to the costs of their answer."""
    for sample in samples:
        rollout.count(**sample.costs)


class StreamNoise:
    """The noise of one attempt stream, whatever attempt is requested."""

    def __init__(self, noise: Noise, stream: int) -> None:
        self._noise, self._stream = noise, stream

    def token_uniforms(self, *, position: int, attempt: int, count: int) -> Sequence[float]:
        """See `Noise`."""
        return self._noise.token_uniforms(position=position, attempt=self._stream, count=count)

    def acceptance_uniform(self, *, position: int, attempt: int) -> float:
        """See `Noise`."""
        return self._noise.acceptance_uniform(position=position, attempt=self._stream)

    def proposal_index(self, *, position: int, attempt: int, shares: Sequence[float]) -> int:
        """See `Noise`."""
        return self._noise.proposal_index(position=position, attempt=self._stream, shares=shares)


def _as_draw(sample: Rollout, verdict: Verdict) -> Draw:
    ids = tuple(sample.token_ids)
    attempt = Attempt(
        reward=_reward_of(sample),
        threshold=math.nan,  # Best-of-N has no threshold
        acceptance_prob=math.nan,
        verdict=verdict,
        eligible=_is_eligible(sample),
        num_tokens=len(ids),
        parts=None if sample.reward_parts is None else dict(sample.reward_parts),
        text=sample.text if sample.align.keep_rejected_text else None,
    )
    whole = ParsedDraft(len(ids), sample.text, ids, sample.finish_reason)
    return Draw(Candidate(ids, sample.text, sample.finish_reason, whole, 0, len(ids)), attempt)


def _empty_finish_reason(samples: Sequence[Rollout]) -> FinishReason:
    """Return the limit that ended the samples if none was scored; else "rejected"."""
    bounds = [s.finish_reason for s in samples if s.finish_reason in ("budget", "deadline")]
    scored = any(sample.reward is not None for sample in samples)
    return "rejected" if scored or not bounds else bounds[0]


def _is_eligible(sample: Rollout) -> bool:
    return sample.reward is not None and not sample.costs.get("num_ineligible", 0)


def _reward_of(sample: Rollout) -> float:
    return math.nan if sample.reward is None else sample.reward
