"""Alternatives of one request, as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AlternativeIds:
    """An alternative to the plain prompt of one request.

    Attributes:
        index: Its position in `AlignParams.alternatives`.
        share: Probability that a draw is proposed by it, above 0.
        prompt_ids: Its prompt; None if it is the plain one.
        opening_ids: Tokens with which the answer begins.
    """

    index: int
    share: float
    prompt_ids: tuple[int, ...] | None = None
    opening_ids: tuple[int, ...] = ()

    def rest_of_opening(self, answer: Sequence[int]) -> tuple[int, ...]:
        """Return the tokens of the opening after an answer that is a beginning of it, or none."""
        size = len(answer)
        is_inside = size < len(self.opening_ids) and self.opening_ids[:size] == tuple(answer)
        return self.opening_ids[size:] if is_inside else ()
