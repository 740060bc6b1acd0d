"""Draft the next segment while the rewards of this one are computed.

Noise is counted, so a draft depends only on its prefix, position and attempt, not on when it is
made. While the candidates of a segment wait for their rewards, the segment after the first of them
may be drafted: no other candidate is more likely to be accepted. If it is accepted, its drafts are
used as if they had been made later. If not, they are dropped.
"""

from __future__ import annotations

import math

from stars_engine.algorithm.rollout import Rollout
from stars_engine.algorithm.verification import DraftVerification
from stars_engine.core.request import Request

_WEIGHT = 0.2  # of the latest duration in a mean


class MeanDuration:
    """An exponential moving average of durations.

    Attributes:
        seconds: The mean; None before the first duration.
    """

    def __init__(self) -> None:
        self.seconds: float | None = None

    def add(self, seconds: float) -> None:
        """Add the latest duration."""
        before = seconds if self.seconds is None else self.seconds
        self.seconds = before + _WEIGHT * (seconds - before)


def request_after_first(request: Request, verification: DraftVerification) -> Request | None:
    """Return the request as it would be if its first candidate were accepted.

    Returns:
        The request; None if the answer ends there, or if its next draws depend on more than the
        prefix.
    """
    rollout = request.rollout
    if not verification.inputs or not verification.candidates:
        return None
    candidate, align = verification.candidates[0], rollout.align
    is_counted = align.segment_end == "length" and align.max_drafted_tokens is None
    if candidate.finish_reason is not None or not is_counted or rollout.spans is not None:
        return None
    ahead: Rollout = rollout.fork()
    ahead.keep(candidate, "accepted", None)
    ahead.prefix_reward = math.nan  # not known yet, so it does not limit the draws
    return Request(
        ahead,
        request.reward,
        request.decoding,
        handle=request.handle,
        alternative_handles=request.alternative_handles,
    )


def pays(
    acceptance: float, draft_s: float | None, reward_s: float | None, extra_s: float, streams: int
) -> bool:
    """Return whether drafting ahead saves more time than its rows cost.

    Args:
        acceptance: Probability that the first candidate is accepted.
        draft_s: Mean duration of a draft.
        reward_s: Mean duration of the rewards of a segment.
        extra_s: By how much the rows would slow down each request if they were all computed. When
            the candidate is rejected, they are cancelled, and have run for the time of the rewards.
        streams: Requests that they slow down.
    """
    if draft_s is None or reward_s is None:
        return False
    saved_s = min(draft_s, reward_s)
    lost_s = extra_s * streams * (saved_s / draft_s if draft_s else 1)
    return acceptance * saved_s > (1 - acceptance) * lost_s
