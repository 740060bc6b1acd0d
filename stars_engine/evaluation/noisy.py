"""A guide whose rewards of unfinished text are noisy: how much STARS suffers from that."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from statistics import NormalDist

from stars_engine.rewards.base import RewardModel, score_each
from stars_engine.types import RewardInput, Score

_NORMAL = NormalDist()


class NoisyReward:
    """Adds normal noise to rewards of unfinished text; those of finished answers stay exact.

    The noise of a text is always the same: it is drawn from a hash of prompt and text.

    Args:
        reward: The reward model.
        sigma: Standard deviation of the noise, in reward units.
        max_tokens: Tokens at which an answer ends by length, whose reward is exact; None: only
            answers that the model ends count as finished.
    """

    def __init__(self, reward: RewardModel, sigma: float, max_tokens: int | None = None) -> None:
        self._reward, self._sigma, self._max_tokens = reward, sigma, max_tokens

    def score(self, inputs: Sequence[RewardInput]) -> list[Score]:
        """See `RewardModel`."""
        scores = []
        for item, outcome in zip(inputs, score_each(self._reward, inputs), strict=True):
            if not isinstance(outcome, Score):
                raise outcome
            scores.append(outcome if self._is_whole(item) else self._noisy(item, outcome))
        return scores

    def _is_whole(self, item: RewardInput) -> bool:
        return item.finished or len(item.token_ids) == self._max_tokens

    def _noisy(self, item: RewardInput, score: Score) -> Score:
        text = f"{item.prompt.text}\n{item.text}".encode()
        digest = hashlib.blake2b(text, digest_size=8).digest()
        uniform = (int.from_bytes(digest) + 0.5) / 2**64
        value = score.value + self._sigma * _NORMAL.inv_cdf(uniform)
        return Score(value, vetoed=score.vetoed, num_tokens=score.num_tokens)
