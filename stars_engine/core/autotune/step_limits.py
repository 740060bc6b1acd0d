"""Limits of a step's work, from the measured speed of earlier steps."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from statistics import median_low

from stars_engine.core.autotune.step_costs import StepCosts

STEP_S = 0.05  # predicted duration of a step beside other callers
_MOST_SLOWDOWN = 1.25  # of steps that take longer even with one row
_LEAST_ROWS = 4
_MOST_ROWS = 4096
_LEAST_NEW_TOKENS = 256
_UNMEASURED_NEW_TOKENS = 512
_NUM_KEPT = 5  # measurements of prompts


class StepLimits:
    """Limits steps to `STEP_S`, or to a little more than the time of one row if that is longer.

    The limits apply while callers wait for each other. They change which requests share a step and
    how many candidates are drafted at once, never the text.

    Args:
        costs: Measured durations of steps, per drafted token.
    """

    def __init__(self, costs: StepCosts) -> None:
        self._costs = costs
        self._limit_s = STEP_S  # of the latest step
        self._prompt_token_s: deque[float] = deque(maxlen=_NUM_KEPT)

    def max_rows(self, row_len: int, num_tokens: int) -> int | None:
        """Return how many rows a step may have; None if no step has been measured.

        Args:
            row_len: Tokens that each row drafts.
            num_tokens: Total length of the prefixes.
        """
        if not self._costs.is_measured:
            return None
        curve = self._costs.curve(num_tokens)
        self._limit_s = max(STEP_S, _MOST_SLOWDOWN * curve.on_line(1) * row_len)
        rows = range(1, _MOST_ROWS + 1)
        return max(_LEAST_ROWS, bisect_right(rows, self._limit_s / row_len, key=curve.on_line))

    def max_new_tokens(self) -> int:
        """Return how many tokens of prompts a step may compute."""
        if not self._prompt_token_s:
            return _UNMEASURED_NEW_TOKENS
        return max(_LEAST_NEW_TOKENS, int(self._limit_s / median_low(self._prompt_token_s)))

    def prompt_s(self, num_tokens: int) -> float:
        """Return the expected seconds for computing tokens of prompts; 0 if none was measured."""
        return num_tokens * median_low(self._prompt_token_s) if self._prompt_token_s else 0.0

    def note_prompts(self, num_tokens: int, num_rows: int, row_len: int, seconds: float) -> None:
        """Record the duration of a step that computed prompts.

        Args:
            num_tokens: Tokens of the prompts.
            num_rows: Number of rows that the step drafted.
            row_len: Tokens of each row.
            seconds: Duration of the step.
        """
        if num_tokens < _LEAST_NEW_TOKENS or not self._costs.is_measured:
            return
        drafting_s = self._costs.curve().on_line(num_rows) * row_len
        if seconds > drafting_s:  # if not, the prompts were cached
            self._prompt_token_s.append((seconds - drafting_s) / num_tokens)
