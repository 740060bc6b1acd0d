"""Counter-based noise: every uniform is a function of the position at which it is used.

A token's uniform depends on (seed, prompt ids, sample index, position in the completion, attempt).
Text therefore does not depend on batch composition, batch size or scheduling order.
"""

from __future__ import annotations

import hashlib
import secrets
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

import numpy as np

# Separate streams, so accepting everything equals plain sampling.
_TOKENS, _ACCEPTANCE, _PROPOSALS = 0, 1, 2


class Noise(Protocol):
    """The source of randomness of one rollout."""

    def token_uniforms(self, *, position: int, attempt: int, count: int) -> Sequence[float]:
        """Return uniforms in [0, 1) for `count` tokens from completion position `position`."""

    def acceptance_uniform(self, *, position: int, attempt: int) -> float:
        """Return the uniform that tests attempt `attempt` of the segment at `position`."""

    def proposal_index(self, *, position: int, attempt: int, shares: Sequence[float]) -> int:
        """Return which of several proposals, of the given probabilities, makes an attempt.

        It is asked for only if there are alternatives to the plain prompt, once for each attempt.
        """


class CounterNoise:
    """Philox 4x64 (Salmon et al. 2011), keyed by request; position and attempt are the counter."""

    def __init__(self, *, seed: int, prompt_ids: Sequence[int], sample_index: int) -> None:
        digest = hashlib.blake2b(digest_size=16)
        digest.update(b"%d/%d/" % (seed, sample_index))
        digest.update(np.asarray(prompt_ids, dtype="<i8").tobytes())
        self._key = np.frombuffer(digest.digest(), dtype="<u8")

    def token_uniforms(self, *, position: int, attempt: int, count: int) -> Sequence[float]:
        """See `Noise`."""
        return self._uniforms(position, attempt, _TOKENS, count)

    def acceptance_uniform(self, *, position: int, attempt: int) -> float:
        """See `Noise`."""
        return self._uniforms(position, attempt, _ACCEPTANCE, 1)[0]

    def proposal_index(self, *, position: int, attempt: int, shares: Sequence[float]) -> int:
        """See `Noise`."""
        [uniform] = self._uniforms(position, attempt, _PROPOSALS, 1)
        cdf = list(accumulate(shares))
        return min(bisect_right(cdf, uniform * cdf[-1]), len(cdf) - 1)

    def _uniforms(self, position: int, attempt: int, stream: int, count: int) -> list[float]:
        # Each position has a counter block of four words, of which only the first is used. So a
        # uniform does not depend on where its segment begins.
        counter = np.array([position, attempt, stream, 0], dtype=np.uint64)
        words = np.random.Philox(counter=counter, key=self._key).random_raw(4 * count)[::4]
        uniforms: list[float] = ((words >> np.uint64(11)) * 2.0**-53).tolist()
        return uniforms


def fresh_seed() -> int:
    """Return a random seed; results report it."""
    return secrets.randbits(63)
