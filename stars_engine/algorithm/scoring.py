"""What a reward model is asked about a candidate, and which candidates it is not asked about.

Reasoning, tool calls and JSON written under a grammar are kept unscored unless `AlignParams.judge`
is "all": a reward model of prose has nothing to say about them.
"""

from __future__ import annotations

from stars_engine.algorithm.candidate import Candidate
from stars_engine.algorithm.rollout import Rollout
from stars_engine.types import RewardInput


def reward_input(rollout: Rollout, candidate: Candidate) -> RewardInput:
    """Ask for the reward of the whole completion with this candidate."""
    shown = candidate.shown
    text, ids = shown.text, shown.ids
    if rollout.align.judge == "answer" and rollout.replies is not None:
        text, ids = rollout.replies.judged(rollout.prompt_ids, ids, text)
    finished = shown.finish_reason == "stop"
    return RewardInput(rollout.reward_prompt, _scored_prefill(rollout) + text, ids, finished)


def prompt_input(rollout: Rollout) -> RewardInput:
    """Ask for RM(x, "")."""
    return RewardInput(rollout.reward_prompt, _scored_prefill(rollout), ())


def is_unscored(rollout: Rollout, candidate: Candidate) -> bool:
    """Whether a candidate is kept without a reward."""
    if rollout.align.judge == "all":
        return False
    if rollout.align.judges_none_of(rollout.sampling):
        return True
    replies = rollout.replies
    if replies is None:
        return False
    before = replies.marked(rollout.prompt_ids, rollout.token_ids, rollout.text)
    ids = (*rollout.token_ids, *candidate.token_ids)
    after = replies.marked(rollout.prompt_ids, ids, candidate.text)
    begin, end = replies.prose(after)
    # A candidate without text, an end of text, is part of what stands before it.
    start = len(before) - (len(before) == len(after))
    if candidate.finish_reason == "stop" and begin == end == len(after):
        return False  # an answer that says nothing
    return bool(after) and (len(after) <= begin or start >= end)


def in_unscored_span(rollout: Rollout) -> bool:
    """Whether the next segment will hardly be scored: the answer is in reasoning or a tool call."""
    if rollout.align.judge == "all":
        return False
    if rollout.align.judges_none_of(rollout.sampling):
        return True
    replies = rollout.replies
    if replies is None:
        return False
    if not rollout.token_ids:
        return replies.must_call or replies.thoughts == "begun"
    marked = replies.marked(rollout.prompt_ids, rollout.token_ids, rollout.text)
    begin, end = replies.prose(marked)
    return len(marked) <= begin or end < len(marked)


def _scored_prefill(rollout: Rollout) -> str:
    """Return what the reward model reads of the text that the prompt has begun the answer with."""
    if rollout.align.judge == "all" or rollout.replies is None:
        return rollout.prefill
    return rollout.replies.prose_of_begun(rollout.prefill)
