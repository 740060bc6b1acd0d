"""STARS: segment-level rejection sampling guided by a reward model (arXiv 2511.03827).

For each segment: draft candidates, score the whole text so far, accept the first that passes the
threshold, or settle when all attempts are spent. Candidates are drafted in parallel and walked *in
index order*, each with a uniform of its own, which is the law of drawing one at a time. Taking the
best of several accepted ones, or keeping an unused draft for later, would be another law.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from stars_engine.acceptance import acceptance_prob, accepts
from stars_engine.backends.base import LanguageModel
from stars_engine.errors import AlignmentError, RequestError, RewardError, StarsWarning
from stars_engine.rewards.base import RewardModel, Score, score_each
from stars_engine.rollout import Candidate, Draw, Rollout
from stars_engine.schedules import NoSchedule
from stars_engine.types import Attempt, RewardInput, SegmentEvent, Verdict

MAX_ACTIVE = 32  # rollouts that share a round; the others wait for a place

RoundFunction = Callable[[Sequence[Rollout], LanguageModel, RewardModel], list[SegmentEvent]]


def stars(
    rollouts: Sequence[Rollout], model: LanguageModel, reward: RewardModel
) -> Iterator[SegmentEvent]:
    """Align rollouts; yield each segment as it is kept, the last of a rollout with its result.

    A rollout that fails ends with its `error` set and does not disturb the others.
    """
    warn_of_greedy(rollouts)
    return run_rounds(rollouts, model, reward, round_function=stars_round)


def stars_round(
    rollouts: Sequence[Rollout], model: LanguageModel, reward: RewardModel
) -> list[SegmentEvent]:
    """One round: draft, score, accept. What is accepted, `run_rounds` commits."""
    events = score_prompts(rollouts, reward) + end_at_bounds(rollouts)
    drafting = [rollout for rollout in rollouts if not rollout.finished]
    drafts = draft(drafting, model)
    scores = score(drafting, drafts, reward)
    for rollout, candidates, outcomes in zip(drafting, drafts, scores, strict=True):
        try:
            event = walk(rollout, candidates, outcomes)
        except RequestError as error:
            event = rollout.fail(error)
        if event is not None:
            events.append(event)
    return events


def draft(rollouts: Sequence[Rollout], model: LanguageModel) -> list[list[Candidate]]:
    """Draft up to `num_candidates` draws of each rollout's next segment, all in one batch."""
    requests = []
    for rollout in rollouts:
        first = len(rollout.draws)
        last = min(first + rollout.align.num_candidates, rollout.max_attempts)
        requests.append([rollout.draft_request(attempt) for attempt in range(first, last)])
    flat = [request for group in requests for request in group]
    drafts = iter(model.draft(flat) if flat else [])
    return [
        [rollout.read(ids, model) for ids in islice(drafts, len(group))]
        for rollout, group in zip(rollouts, requests, strict=True)
    ]


def score(
    rollouts: Sequence[Rollout], drafts: Sequence[Sequence[Candidate]], reward: RewardModel
) -> list[list[Score | RewardError]]:
    """Score every candidate's whole completion, all in one batch."""
    inputs: list[RewardInput] = []
    for rollout, candidates in zip(rollouts, drafts, strict=True):
        inputs += [rollout.reward_input(candidate) for candidate in candidates]
        rollout.count_surplus(candidates)  # until the walk reaches them
    outcomes = iter(score_each(reward, inputs))
    return [list(islice(outcomes, len(candidates))) for candidates in drafts]


def walk(
    rollout: Rollout, candidates: Sequence[Candidate], outcomes: Sequence[Score | RewardError]
) -> SegmentEvent | None:
    """Judge candidates in index order and keep the first accepted.

    Candidates after it are never looked at: neither their rewards nor their errors count.

    Returns:
        The segment kept or the answer's end; None if all were rejected and attempts remain.
    """
    for candidate, outcome in zip(candidates, outcomes, strict=True):
        if rollout.over_budget:
            return rollout.finish("budget")
        if isinstance(outcome, RewardError):
            raise outcome
        draw = judge(rollout, candidate, outcome)
        rollout.record(draw, outcome)
        if draw.attempt.verdict == "accepted":
            return rollout.keep(candidate, "accepted", draw.attempt)
    if len(rollout.draws) < rollout.max_attempts:
        return None
    return settle(rollout)


def judge(rollout: Rollout, candidate: Candidate, score: Score) -> Draw:
    """Put one candidate to the test: accept with probability min(1, exp((r - tau) / beta))."""
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
        text=candidate.text[len(rollout.text) :] if rollout.align.keep_rejected_text else None,
    )
    return Draw(candidate, attempt)


def threshold_of(rollout: Rollout, candidate: Candidate) -> float:
    """Return tau: the schedule's, or what `terminal` says for one that ends the answer."""
    schedule, terminal = rollout.align.schedule, rollout.align.terminal
    assert schedule is not None
    progress = rollout.progress(candidate)
    if candidate.finish_reason is None or terminal == "schedule":
        return schedule.threshold(progress)
    if terminal == "target":
        return schedule.final_threshold(progress)
    return float(terminal)


def settle(rollout: Rollout) -> SegmentEvent:
    """Apply `on_exhausted` to a segment of which no draw was accepted."""
    align = rollout.align
    eligible = [index for index, draw in enumerate(rollout.draws) if draw.attempt.eligible]
    if align.on_exhausted == "raise":
        raise AlignmentError(
            f"no candidate of segment {len(rollout.segments)} was accepted in "
            f"{rollout.max_attempts} attempts. Cure: lower the thresholds, raise max_attempts or "
            "beta, or set on_exhausted; the error's `result` holds what was accepted"
        )
    if align.on_exhausted == "fallback":
        return rollout.finish("fallback", fallback_text=align.fallback_text)
    if align.on_exhausted == "stop" or not eligible:
        return rollout.finish("rejected")
    if align.on_exhausted == "last":
        return rollout.force(eligible[-1])
    return rollout.force(max(eligible, key=lambda index: _margin(rollout.draws[index].attempt)))


def _margin(attempt: Attempt) -> tuple[float, float]:
    """Order by r - tau (`max` keeps the first of equals); by r alone where tau is infinite."""
    margin = attempt.reward - attempt.threshold
    return margin, 0.0 if math.isfinite(margin) else attempt.reward


def score_prompts(rollouts: Sequence[Rollout], reward: RewardModel) -> list[SegmentEvent]:
    """Score the empty completion where a schedule starts from it."""
    asking = [r for r in rollouts if r.needs_prompt_reward]
    outcomes = score_each(reward, [RewardInput(r.reward_prompt, "", ()) for r in asking])
    events = []
    for rollout, outcome in zip(asking, outcomes, strict=True):
        if isinstance(outcome, RewardError):
            events.append(rollout.fail(outcome))
            continue
        rollout.count(num_reward_calls=1, num_reward_tokens=outcome.num_tokens)
        rollout.prompt_reward = rollout.prefix_reward = outcome.value
        if not math.isfinite(outcome.value):
            message = (
                f"the reward of the prompt alone is {outcome.value}, and the schedule starts from "
                "it. Cure: LinearSchedule(initial=...) in place of initial_weight"
            )
            events.append(rollout.fail(RewardError(message)))
    return events


def end_at_bounds(rollouts: Sequence[Rollout]) -> list[SegmentEvent]:
    """End the rollouts that may not draw again."""
    events = []
    for rollout in rollouts:
        if not rollout.finished and rollout.past_deadline:
            events.append(rollout.finish("deadline"))
        elif not rollout.finished and rollout.over_budget:
            events.append(rollout.finish("budget"))
    return events


def run_rounds(
    rollouts: Sequence[Rollout],
    model: LanguageModel,
    reward: RewardModel,
    *,
    round_function: RoundFunction,
) -> Iterator[SegmentEvent]:
    """Run rounds until every rollout has ended; newcomers join where others have left."""
    waiting = list(reversed(rollouts))
    active: list[Rollout] = []
    while waiting or active:
        newcomers = [waiting.pop() for _ in range(min(len(waiting), MAX_ACTIVE - len(active)))]
        slots = model.prefill([rollout.prompt_ids for rollout in newcomers]) if newcomers else []
        for rollout, slot in zip(newcomers, slots, strict=True):
            rollout.slot = slot
        active += newcomers
        lengths = [len(rollout.token_ids) for rollout in active]
        events = round_function(active, model, reward)
        kept = [
            (rollout.slot, rollout.token_ids[length:])
            for rollout, length in zip(active, lengths, strict=True)
            if not rollout.finished and len(rollout.token_ids) > length
        ]
        model.commit(kept)
        active = [rollout for rollout in active if not rollout.finished]
        yield from events


def warn_of_greedy(rollouts: Sequence[Rollout]) -> None:
    """Say once that rejection cannot help where all draws are equal."""
    for rollout in rollouts:
        greedy = rollout.sampling.temperature == 0
        if greedy and not isinstance(rollout.align.schedule, NoSchedule):
            warnings.warn(
                "temperature is 0: all draws of a segment are equal, so each is drawn once, "
                "judged, and then on_exhausted applies. Cure: a temperature above 0",
                StarsWarning,
                stacklevel=3,
            )
            return
