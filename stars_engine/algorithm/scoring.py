"""The reward model's input for a candidate, and which candidates are not scored.

Reasoning, tool calls and JSON written under a grammar are not scored unless `AlignParams.judge` is
"all", because reward models are trained on prose.
"""

from __future__ import annotations

from stars_engine.algorithm.candidate import Candidate
from stars_engine.algorithm.rollout import Rollout
from stars_engine.types import RewardInput


def reward_input(rollout: Rollout, candidate: Candidate) -> RewardInput:
    """Return the input that scores the whole completion including this candidate."""
    scored = candidate.scored
    text, ids = scored.text, scored.ids
    if rollout.align.judge == "answer" and rollout.spans is not None:
        text, ids = rollout.spans.judged(rollout.prompt_ids, ids, text)
    finished = scored.finish_reason == "stop"
    features = rollout.features_with(candidate, scored.size)
    text = _scored_prefill(rollout) + text
    return RewardInput(rollout.reward_prompt, text, ids, finished, features)


def prompt_input(rollout: Rollout, candidate: Candidate) -> RewardInput:
    """Return the input for RM(x, ""); `candidate` is a draft of the first segment."""
    features = rollout.features_with(candidate, 0)
    return RewardInput(rollout.reward_prompt, _scored_prefill(rollout), (), features=features)


def is_unscored(rollout: Rollout, candidate: Candidate) -> bool:
    """Whether a candidate is kept without a reward."""
    if rollout.align.judge == "all":
        return False
    if rollout.align.judges_none_of(rollout.sampling):
        return True
    spans = rollout.spans
    if spans is None:
        return False
    before = spans.marked(rollout.prompt_ids, rollout.token_ids, rollout.text)
    ids = (*rollout.token_ids, *candidate.token_ids)
    after = spans.marked(rollout.prompt_ids, ids, candidate.text)
    begin, end = spans.prose(after)
    # A candidate without text, such as end of text, belongs to the span before it.
    start = len(before) - (len(before) == len(after))
    if candidate.finish_reason == "stop" and begin == end == len(after):
        return False  # an empty answer is scored
    return bool(after) and (len(after) <= begin or start >= end)


def in_unscored_span(rollout: Rollout) -> bool:
    """Whether the next segment is likely unscored: the answer is in reasoning or a tool call."""
    if rollout.align.judge == "all":
        return False
    if rollout.align.judges_none_of(rollout.sampling):
        return True
    spans = rollout.spans
    if spans is None:
        return False
    if not rollout.token_ids:
        return spans.must_call or spans.reasoning_mode == "open"
    marked = spans.marked(rollout.prompt_ids, rollout.token_ids, rollout.text)
    begin, end = spans.prose(marked)
    return len(marked) <= begin or end < len(marked)


def _scored_prefill(rollout: Rollout) -> str:
    """Return the part of the assistant prefill that the reward model sees."""
    if rollout.align.judge == "all" or rollout.spans is None:
        return rollout.prefill
    return rollout.spans.prose_of_prefill(rollout.prefill)
