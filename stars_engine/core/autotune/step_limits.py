"""Limits of a step's work, from the measured speed of earlier steps."""

from __future__ import annotations

from bisect import bisect_right

from stars_engine.core.autotune.step_costs import StepCosts

STEP_S = 0.06  # predicted duration of a step beside other callers
_MOST_SLOWDOWN = 2.0  # steps that take longer even with one row: relative to that row
_LEAST_ROWS = 4
_MOST_ROWS = 4096
_LEAST_NEW_TOKENS = 256


class StepLimits:
    """Limits steps to `STEP_S`, or to twice the time of one row if that is more.

    The limits apply while callers wait for each other. They change which requests share a step and
    how many candidates are drafted at once, never the text.

    Args:
        costs: Measured durations of steps, per drafted token.
    """

    def __init__(self, costs: StepCosts) -> None:
        self._costs = costs

    def max_rows(self, row_len: int, num_tokens: int) -> int | None:
        """Return how many rows a step may have; None if no step has been measured.

        Args:
            row_len: Tokens that each row drafts.
            num_tokens: Total length of the prefixes.
        """
        if not self._costs.is_measured:
            return None
        curve = self._costs.curve(num_tokens)
        limit_s = max(STEP_S / row_len, _MOST_SLOWDOWN * curve.on_line(1))
        rows = range(1, _MOST_ROWS + 1)
        return max(_LEAST_ROWS, bisect_right(rows, limit_s, key=curve.on_line))

    def max_new_tokens(self, most: int) -> int:
        """Return how many tokens of prompts a step may compute, at most `most`.

        A token of a prompt costs at most as much as one token of a further row.
        """
        if not self._costs.is_measured:
            return most
        curve = self._costs.curve()
        per_token_s = (curve.on_line(16) - curve.on_line(1)) / 15
        if per_token_s <= 0:
            return most
        return min(most, max(_LEAST_NEW_TOKENS, int(STEP_S / per_token_s)))
