"""Limits of each API key, so that no caller crowds out the others."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from stars_engine.server.errors import too_many_requests
from stars_engine.server.facts import RequestFacts
from stars_engine.server.settings import ServerParams


class KeyLimits:
    """Counts the requests in progress, and the tokens, of each key.

    Tokens are counted when their request has ended. So a key may exceed its tokens, and then waits
    until they are made up for.

    Args:
        params: The limits.
        clock: Returns seconds.
    """

    def __init__(self, params: ServerParams, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_requests = params.max_requests_per_key
        self._tokens_per_minute = params.tokens_per_minute_per_key
        self._clock = clock
        self._num_requests: Counter[str] = Counter()
        self._tokens: dict[str, tuple[float, float]] = {}  # left, and when they were counted

    @contextmanager
    def count(self, facts: RequestFacts) -> Iterator[None]:
        """Count a request while it is in progress, and then its tokens.

        Raises:
            ApiError: The key has reached a limit.
        """
        key = facts.key
        if key is None:
            yield
            return
        self._check(key)
        self._num_requests[key] += 1
        try:
            yield
        finally:
            self._num_requests[key] -= 1
            if self._tokens_per_minute is not None:
                self._tokens[key] = self._left(key) - facts.num_charged_tokens, self._clock()

    def _check(self, key: str) -> None:
        if self._num_requests[key] >= self._max_requests:
            message = (
                f"{self._max_requests} requests of this API key are in progress. Hint: retry when "
                "one of them has ended"
            )
            raise too_many_requests(message)
        if self._tokens_per_minute is None:
            return
        left = self._left(key)
        if left <= 0:
            wait_s = math.floor(-left * 60 / self._tokens_per_minute) + 1
            message = (
                f"This API key has used its {self._tokens_per_minute} tokens per minute. Hint: "
                f"retry in {wait_s} s"
            )
            raise too_many_requests(message, wait_s)

    def _left(self, key: str) -> float:
        """Return the tokens that a key may use now; they come back evenly over a minute."""
        assert self._tokens_per_minute is not None
        now_s = self._clock()
        left, counted_s = self._tokens.get(key, (self._tokens_per_minute, now_s))
        regained = (now_s - counted_s) * self._tokens_per_minute / 60
        return min(left + regained, self._tokens_per_minute)
