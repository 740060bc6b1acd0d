"""How much of the engine's memory budgets requests reserve, and whether one more fits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from stars_engine.algorithm.rollout import Rollout
from stars_engine.kv_cache.capacity import slot_capacity
from stars_engine.memory import KeepsCache


@dataclass
class Reserved:
    """What requests in progress may grow to.

    Attributes:
        num_tokens: Tokens of prompts and answers.
        num_slot_tokens: Tokens of the cache slots that hold them.
    """

    num_tokens: int = 0
    num_slot_tokens: int = 0

    @classmethod
    def by(cls, rollouts: Iterable[Rollout]) -> Reserved:
        """Return what rollouts reserve together."""
        reserved = cls()
        for rollout in rollouts:
            reserved.add(rollout)
        return reserved

    def add(self, rollout: Rollout) -> None:
        """Count one more."""
        self.num_tokens += rollout.num_tokens_at_most
        self.num_slot_tokens += _slot_tokens(rollout)


class MemoryBudget:
    """What may be reserved at a time.

    Args:
        model: The language model; how much it caches per token is known after its first draft.
        max_tokens: See `EngineParams.max_prefix_tokens`.
        max_bytes: See `EngineParams.max_cache_bytes`.
    """

    def __init__(
        self, model: object, *, max_tokens: int | None = None, max_bytes: int | None = None
    ) -> None:
        self._model = model
        self._max_tokens, self._max_bytes = max_tokens, max_bytes

    @property
    def _max_slot_tokens(self) -> int | None:
        bytes_per_token = self._model.bytes_per_token if isinstance(self._model, KeepsCache) else 0
        if self._max_bytes is None or not bytes_per_token:
            return None
        return self._max_bytes // bytes_per_token

    def describe(self) -> str:
        """Return the limits in words."""
        in_slots = f"{self._max_slot_tokens} tokens in cache slots, which are longer than texts"
        limits = [
            None if self._max_tokens is None else f"{self._max_tokens} tokens in all",
            None if self._max_slot_tokens is None else in_slots,
        ]
        return " and ".join(filter(None, limits))

    def holds(self, rollout: Rollout, reserved: Reserved) -> bool:
        """Whether a request fits beside what is reserved."""
        num_tokens = reserved.num_tokens + rollout.num_tokens_at_most
        num_slot_tokens = reserved.num_slot_tokens + _slot_tokens(rollout)
        max_slot_tokens = self._max_slot_tokens
        return (self._max_tokens is None or num_tokens <= self._max_tokens) and (
            max_slot_tokens is None or num_slot_tokens <= max_slot_tokens
        )


def _slot_tokens(rollout: Rollout) -> int:
    """Return the tokens of a rollout's slot, and of the one that it may grow out of."""
    first = slot_capacity(len(rollout.prompt_ids))
    last = slot_capacity(rollout.num_tokens_at_most)
    return last if first == last else first + last
