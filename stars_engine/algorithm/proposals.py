"""The proposal of each draw: the plain prompt, or one of its alternatives.

A draw picks its proposal by counted noise, so the pick depends on the position and the attempt
alone. The proposal of the law is then the mixture

    q(s) = (1 - sum of shares) q_plain(s) + sum over alternatives of share * q_alternative(s)

in which an opening contributes a point mass on its tokens, followed by the model. All of it is a
function of the prompt and the answer so far.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import fsum

from stars_engine.algorithm.rollout import Rollout
from stars_engine.algorithm.scoring import in_unscored_span


@dataclass(frozen=True, slots=True)
class SegmentProposal:
    """What one draw of the next segment continues.

    Attributes:
        prompt_ids: The prompt.
        alternative: Position of its alternative in `AlignParams.alternatives`; None for the plain
            prompt.
        has_own_prompt: Whether the prompt is not the plain one.
        forced: Tokens with which the draw begins, at most the length of the segment.
    """

    prompt_ids: tuple[int, ...]
    alternative: int | None = None
    has_own_prompt: bool = False
    forced: tuple[int, ...] = ()


def next_proposals(rollout: Rollout, attempts: Iterable[int]) -> list[SegmentProposal]:
    """Return the proposal of each attempt at the next segment.

    Spans that are not scored continue the plain prompt, since nothing is selected there.
    """
    plain = SegmentProposal(rollout.prompt_ids)
    others: list[SegmentProposal] = []
    shares: list[float] = []
    if rollout.alternatives and not in_unscored_span(rollout):
        for each in rollout.alternatives:
            forced = each.rest_of_opening(rollout.token_ids)[: rollout.next_len]
            own = each.prompt_ids
            if own is not None or forced:
                prompt_ids = rollout.prompt_ids if own is None else own
                others.append(SegmentProposal(prompt_ids, each.index, own is not None, forced))
                shares.append(each.share)
    if not others:
        return [plain for _ in attempts]
    mixture = [max(0.0, 1 - fsum(shares)), *shares]
    choices = [plain, *others]
    position = len(rollout.token_ids)
    return [
        choices[rollout.noise.proposal_index(position=position, attempt=attempt, shares=mixture)]
        for attempt in attempts
    ]
