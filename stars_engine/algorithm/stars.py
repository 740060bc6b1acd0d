"""STARS: segment-level rejection sampling guided by a reward model (arXiv 2511.03827).

For each segment: draft candidates, score the whole text so far with each, and accept the first that
passes the threshold. If all attempts are rejected, apply `on_exhausted`. Candidates are drafted in
parallel but verified *in index order*, each with its own uniform, so the distribution equals that
of drawing one at a time. Taking the best of several accepted candidates, or reusing an unused
draft, would change the distribution.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import takewhile

from stars_engine.algorithm.acceptance import acceptance_prob, accepts
from stars_engine.algorithm.candidate import Candidate, Draw
from stars_engine.algorithm.rollout import Rollout
from stars_engine.algorithm.scoring import (
    in_unscored_span,
    is_unscored,
    prompt_input,
    reward_input,
)
from stars_engine.algorithm.verification import DraftVerification, NumDrafts
from stars_engine.config import AlignParams, SamplingParams
from stars_engine.errors import AlignmentError, RewardError, RewardOutcome, StarsWarning
from stars_engine.schedules import NoSchedule
from stars_engine.types import (
    Attempt,
    Score,
    SegmentEvent,
    Verdict,
)


class StarsDecoding:
    """The `DecodingStrategy` of STARS: draft each segment until a draw is accepted."""

    def num_drafts(self, rollout: Rollout) -> NumDrafts:
        """Return `num_candidates`, or the range that "auto" leaves open; at most the draws left."""
        if in_unscored_span(rollout):
            return NumDrafts(1, 1)
        left = rollout.max_attempts - len(rollout.draws)
        wanted = rollout.align.num_candidates
        if wanted == "auto":
            return NumDrafts(1, left)
        return NumDrafts(min(wanted, left), min(wanted, left))

    def first_draft(self, rollout: Rollout) -> int:
        """Return the attempt after the last judged draw."""
        return len(rollout.draws)

    def is_unscored(self, rollout: Rollout, candidate: Candidate) -> bool:
        """Whether a candidate is kept without a reward."""
        return is_unscored(rollout, candidate)

    def open(self, rollout: Rollout, candidates: Sequence[Candidate]) -> DraftVerification:
        """Request the reward of each completion, and RM(x, "") if the schedule needs it.

        A candidate that is not scored is accepted if all candidates before it are rejected.
        """
        rollout.count(num_surplus_tokens=sum(c.num_generated_tokens for c in candidates))
        judged = list(takewhile(lambda item: not self.is_unscored(rollout, item), candidates))
        unscored = candidates[len(judged)] if len(judged) < len(candidates) else None
        inputs = [reward_input(rollout, candidate) for candidate in judged]
        if judged and rollout.needs_prompt_reward:
            inputs.insert(0, prompt_input(rollout, judged[0]))
        return DraftVerification(rollout, judged, inputs, unscored)

    def verify(self, verification: DraftVerification) -> SegmentEvent | None:
        """Judge candidates in index order and keep the first that is accepted.

        Candidates after it, or after the last draw of the segment, are never used: neither their
        rewards nor their errors count. Before the prompt's reward is known, more may be drafted.
        """
        rollout = verification.rollout
        while (outcome := verification.next_outcome()) is not None:
            if rollout.needs_prompt_reward:
                set_prompt_reward(rollout, outcome)
                continue
            if rollout.over_budget:
                return rollout.finish("budget")
            if isinstance(outcome, RewardError):
                raise outcome
            draw = self._judge(rollout, verification.candidate, outcome)
            rollout.record(draw, outcome)
            if draw.attempt.verdict == "accepted":
                return rollout.keep(verification.candidate, "accepted", draw.attempt)
            if len(rollout.draws) >= rollout.max_attempts:
                return self._end_attempts(rollout)
        if verification.unscored is not None:
            return self._keep_unscored(verification, verification.unscored)
        return None

    def _judge(self, rollout: Rollout, candidate: Candidate, score: Score) -> Draw:
        return judge(rollout, candidate, score)

    def _end_attempts(self, rollout: Rollout) -> SegmentEvent | None:
        """Return what follows once all attempts are rejected."""
        return apply_on_exhausted(rollout)

    def _keep_unscored(
        self, verification: DraftVerification, candidate: Candidate
    ) -> SegmentEvent | None:
        """Keep an unscored candidate once all candidates before it are rejected."""
        rollout = verification.rollout
        if not verification.all_used:
            return None
        if rollout.over_budget:
            return rollout.finish("budget")
        num_kept = len(candidate.token_ids)
        rollout.count(num_drafted_tokens=num_kept, num_surplus_tokens=-num_kept)
        return rollout.keep(candidate, "unjudged", None)


def judge(rollout: Rollout, candidate: Candidate, score: Score) -> Draw:
    """Judge one candidate: accept it with probability min(1, exp((r - tau) / beta))."""
    tau = threshold_of(rollout, candidate)
    probability = acceptance_prob(score.value, tau, rollout.align.beta) if score.eligible else 0.0
    uniform = rollout.noise.acceptance_uniform(
        position=len(rollout.token_ids), attempt=len(rollout.draws)
    )
    verdict: Verdict = "accepted" if accepts(uniform, probability) else "rejected"
    attempt = Attempt(
        reward=score.value,
        threshold=tau,
        acceptance_prob=probability,
        verdict=verdict,
        eligible=score.eligible,
        num_tokens=len(candidate.token_ids),
        parts=None if score.parts is None else dict(score.parts),
        ends_text=candidate.finish_reason == "stop",
        text=candidate.text[len(rollout.text) :] if rollout.align.keep_rejected_text else None,
        alternative=candidate.alternative,
    )
    return Draw(candidate, attempt)


def threshold_of(rollout: Rollout, candidate: Candidate) -> float:
    """Return tau: the schedule's, or the `terminal` threshold if the candidate ends the answer."""
    schedule, terminal = rollout.align.schedule, rollout.align.terminal
    assert schedule is not None
    progress = rollout.progress(candidate)
    if candidate.finish_reason is None or terminal == "schedule":
        return schedule.threshold(progress)
    if terminal == "target":
        return schedule.final_threshold(progress)
    return float(terminal)


def apply_on_exhausted(rollout: Rollout) -> SegmentEvent:
    """Apply `on_exhausted` to a segment whose draws were all rejected."""
    align = rollout.align
    eligible = [index for index, draw in enumerate(rollout.draws) if draw.attempt.eligible]
    if align.on_exhausted == "raise":
        raise AlignmentError(
            f"no candidate of segment {len(rollout.segments)} was accepted in "
            f"{rollout.max_attempts} attempts. Hint: lower the thresholds, raise max_attempts or "
            "beta, or set on_exhausted='best'; the error's `result` holds the accepted text"
        )
    if align.on_exhausted == "fallback":
        return rollout.finish("fallback", fallback_text=align.fallback_text)
    if align.on_exhausted == "stop" or not eligible:
        return rollout.finish("rejected")
    if align.on_exhausted == "last":
        return rollout.force(eligible[-1])
    best = max(eligible, key=lambda index: _margin(rollout.draws[index].attempt))
    return rollout.force(
        next(i for i in eligible if _is_near_duplicate(rollout.draws[i], rollout.draws[best]))
    )


def set_prompt_reward(rollout: Rollout, outcome: RewardOutcome) -> None:
    """Set RM(x, ""), from which the schedule starts.

    Raises:
        RewardError: The reward model failed, or returned a non-finite reward.
    """
    if isinstance(outcome, RewardError):
        raise outcome
    rollout.count_reward(outcome)
    if outcome.failed:
        raise RewardError(
            "the reward model failed to score the prompt alone, and the schedule starts from that "
            "reward. Hint: fix the reward model, or use LinearSchedule(initial=...) instead of "
            "initial_weight"
        )
    if not math.isfinite(outcome.value):
        raise RewardError(
            f"the reward of the prompt alone is {outcome.value}, and the schedule starts from that "
            "reward; it must be finite. Hint: use LinearSchedule(initial=...) instead of "
            "initial_weight"
        )
    rollout.prompt_reward = rollout.prefix_reward = outcome.value


def _margin(attempt: Attempt) -> tuple[Fraction | float, float]:
    """Return a key that orders by r - tau, or by r alone if tau is infinite.

    The difference is exact: with floats, different rewards would tie under a huge tau. `max`
    returns the first of equal keys.
    """
    if math.isinf(attempt.threshold):
        return -attempt.threshold, attempt.reward
    return Fraction(attempt.reward) - Fraction(attempt.threshold), 0.0


def _is_near_duplicate(draw: Draw, other: Draw) -> bool:
    """Whether two draws have the same tokens, and rewards that differ by rounding alone."""
    same = draw.candidate.token_ids == other.candidate.token_ids
    return same and math.isclose(
        draw.attempt.reward, other.attempt.reward, rel_tol=1e-5, abs_tol=1e-5
    )


def warn_of_greedy(settings: Iterable[tuple[SamplingParams, AlignParams]]) -> None:
    """Warn that rejection has no effect at temperature 0, where all draws are equal."""
    for sampling, align in settings:
        proposals_differ = any(each.share for each in align.alternatives)
        tests = not isinstance(align.schedule, NoSchedule)
        if sampling.temperature == 0 and tests and not proposals_differ:
            warnings.warn(
                "temperature is 0, so all draws of a segment are equal: each is drafted and "
                "judged once, then on_exhausted applies. Hint: set a temperature above 0",
                StarsWarning,
                stacklevel=3,
            )
            return
