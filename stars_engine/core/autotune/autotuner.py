"""The autotuner: it learns the speed of steps and chooses the number of candidates."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence

from stars_engine.algorithm.rollout import Rollout
from stars_engine.algorithm.verification import NumDrafts
from stars_engine.backends.base import LanguageModel
from stars_engine.core.autotune.acceptance_estimates import AcceptanceEstimates, SegmentDraws
from stars_engine.core.autotune.allocation import Chances, allocate_rows
from stars_engine.core.autotune.cost_probe import probe_costs
from stars_engine.core.autotune.load_costs import LoadCosts
from stars_engine.core.autotune.step_costs import StepCosts
from stars_engine.core.autotune.step_limits import StepLimits
from stars_engine.core.request import Request, num_new_prompt_tokens
from stars_engine.protocols import read_optional
from stars_engine.rewards.base import RewardModel, is_offloaded
from stars_engine.rewards.reward_requests import single_models
from stars_engine.schedules import BaseSchedule
from stars_engine.types import SegmentEvent

_MOST_OUTSIDE = 4  # candidates per request, if the reward is an offloaded function
_NUM_RECALLED = 8  # recent segments of an answer that predict its next one


class CandidateAutotuner:
    """Chooses how many candidates each request of a step drafts.

    There is one for each loaded model, so a call with the same settings starts from what earlier
    calls learned.

    Attributes:
        limits: Limits of a step while callers wait for each other.
    """

    def __init__(self) -> None:
        self._costs, self._estimates = StepCosts(), AcceptanceEstimates()
        self._load_costs = LoadCosts()
        self.limits = StepLimits(self._costs)
        self._has_probed = False
        self._hashed: tuple[BaseSchedule, str] | None = None  # the latest schedule and its hash

    def allocate(
        self,
        requests: Sequence[Request],
        bounds: Sequence[NumDrafts],
        model: LanguageModel,
        *,
        max_rows: int | None,
        in_flight: Mapping[Request, int] | None = None,
    ) -> list[int]:
        """Return how many candidates each request of a step drafts.

        The first time that there is a choice, this measures the model's speed.

        Args:
            requests: The batch.
            bounds: How many candidates each request may draft.
            model: The language model.
            max_rows: Maximum number of candidates in total; None for no limit.
            in_flight: How many candidates of other requests are under way with an asynchronous
                model, drafted or scored; None for a model that answers at once. The former is not
                measured beforehand.
        """
        bounds = [_bounded(item, request) for item, request in zip(bounds, requests, strict=True)]
        if all(least == most for least, most in bounds):
            return [least for least, _ in bounds]
        if in_flight is None and not self._has_probed:
            self._has_probed = True
            self._costs.probed = probe_costs(model, max_rows)
        cost: Callable[[int], float]
        if in_flight is None:
            cost = self._costs.curve(_num_tokens([request.rollout for request in requests]))
        else:
            cost = self._load_costs.curve(len(requests) + len(in_flight))
        chances = [
            Chances(*item, self.acceptance(request))
            for item, request in zip(bounds, requests, strict=True)
        ]
        chances += [
            Chances(count, count, self.acceptance(request))
            for request, count in (in_flight or {}).items()
        ]
        return allocate_rows(chances, cost, max_rows)[: len(requests)]

    def draft_s(self, request: Request, num_tokens: int) -> float:
        """Return the expected seconds of a draft of one row; inf if no step was measured."""
        if not self._costs.is_measured:
            return math.inf
        curve = self._costs.curve(_num_tokens([request.rollout]))
        num_new = 0 if request.prompt_computed else len(request.rollout.prompt_ids)
        return curve.on_line(1) * num_tokens + self.limits.prompt_s(num_new)

    def note_step(self, requests: Sequence[Request], num_rows: int, seconds: float) -> None:
        """Record the duration of a step."""
        rollouts = [request.rollout for request in requests]
        row_len = rollouts[0].align.row_len
        num_new = sum(map(num_new_prompt_tokens, requests, [None, *requests]))
        if num_new:
            self.limits.note_prompts(num_new, num_rows, row_len, seconds)
        else:
            self._costs.note(num_rows, seconds / row_len, _num_tokens(rollouts))

    def note_event(self, rollout: Rollout, reward: RewardModel, event: SegmentEvent) -> None:
        """Record the draws of a segment that was kept or abandoned."""
        segment = event.segment
        attempts = rollout.abandoned if segment is None else segment.attempts
        if attempts:
            accepted = segment is not None and segment.verdict == "accepted"
            index = len(rollout.segments) - (segment is not None)
            draws = SegmentDraws(index, len(attempts), accepted)
            self._estimates.note(self._settings(rollout, reward), draws)

    def note_load(self, request: Request, load: float, own: int, seconds: float) -> None:
        """Record the time to a verdict with an asynchronous model; see `LoadCosts.note`."""
        self._load_costs.note(load, own, seconds / request.rollout.align.row_len)

    def extra_s(self, request: Request, num_requests: int) -> float:
        """Return by how many seconds a further candidate prolongs each request under way."""
        per_token_s = self._load_costs.candidate_s(num_requests)
        return per_token_s * request.rollout.align.row_len

    def acceptance(self, request: Request) -> float:
        """Return the probability that the next draw of a request is accepted."""
        rollout = request.rollout
        first = max(0, len(rollout.segments) - _NUM_RECALLED)
        history = [
            SegmentDraws(first + offset, len(segment.attempts), segment.verdict == "accepted")
            for offset, segment in enumerate(rollout.segments[first:])
            if segment.attempts
        ]
        history.append(SegmentDraws(len(rollout.segments), len(rollout.draws), accepted=False))
        settings = self._settings(rollout, request.reward)
        return self._estimates.acceptance(settings, history)

    def _settings(self, rollout: Rollout, reward: RewardModel) -> Hashable:
        """Return a key that is equal for rollouts with the same test."""
        align = rollout.align
        assert align.schedule is not None
        if self._hashed is None or self._hashed[0] is not align.schedule:
            self._hashed = align.schedule, align.schedule.content_hash()
        return id(reward), self._hashed[1], align.beta, align.segment_len, align.alternatives


def _bounded(bounds: NumDrafts, request: Request) -> NumDrafts:
    """Limit the number of candidates if the reward is offloaded.

    Offloaded rewards are not part of the measured step time, may cost money per call, and may have
    other callers waiting.
    """
    if not any(_is_outside(part) for part in single_models(request.reward)):
        return bounds
    return bounds._replace(most=max(bounds.least, min(bounds.most, _MOST_OUTSIDE)))


def _is_outside(reward: RewardModel) -> bool:
    return is_offloaded(reward) and read_optional(reward, "is_timed") is not True


def _num_tokens(rollouts: Sequence[Rollout]) -> int:
    return sum(len(rollout.prompt_ids) + len(rollout.token_ids) for rollout in rollouts)
