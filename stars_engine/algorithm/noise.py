"""Counter-based noise: every uniform is a function of where it is used, of nothing else.

A token's uniform depends on (seed, prompt ids, sample index, position in the completion, attempt).
Text is therefore the same whatever is drafted beside it, in how many rows, and in which order.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from typing import Protocol

import numpy as np

_TOKENS, _ACCEPTANCE = 0, 1  # streams: accepting everything reproduces plain sampling


class Noise(Protocol):
    """Where one rollout's randomness comes from."""

    def token_uniforms(self, *, position: int, attempt: int, count: int) -> Sequence[float]:
        """Uniforms in [0, 1) for `count` tokens from absolute completion position `position`."""
        ...

    def acceptance_uniform(self, *, position: int, attempt: int) -> float:
        """The uniform that judges attempt `attempt` of the segment beginning at `position`."""
        ...


class CounterNoise:
    """Philox 4x64 (Salmon et al. 2011), keyed by request, counted by position and attempt."""

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

    def _uniforms(self, position: int, attempt: int, stream: int, count: int) -> list[float]:
        # One counter block of four words per position: the first word is used, so that a uniform
        # does not depend on where the segment that holds it begins.
        counter = np.array([position, attempt, stream, 0], dtype=np.uint64)
        words = np.random.Philox(counter=counter, key=self._key).random_raw(4 * count)[::4]
        uniforms: list[float] = ((words >> np.uint64(11)) * 2.0**-53).tolist()
        return uniforms


def fresh_seed() -> int:
    """Return a seed nobody chose; results report it."""
    return secrets.randbits(63)
