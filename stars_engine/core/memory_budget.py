"""The memory that requests reserve beforehand, and whether one more fits the engine's budgets."""

from __future__ import annotations

from dataclasses import dataclass

from stars_engine.algorithm.rollout import Rollout
from stars_engine.kv_cache.slot_capacity import slot_capacity
from stars_engine.out_of_memory import keeps_cache
from stars_engine.protocols import read_optional


@dataclass
class Reserved:
    """The memory that requests in progress may grow to.

    Attributes:
        num_tokens: Tokens of prompts and answers.
        num_slot_tokens: Capacity, in tokens, of the cache slots that hold them.
    """

    num_tokens: int = 0
    num_slot_tokens: int = 0

    def add(self, rollout: Rollout) -> None:
        """Add one rollout."""
        self.num_tokens += _num_tokens(rollout)
        self.num_slot_tokens += _slot_tokens(rollout)

    def remove(self, rollout: Rollout) -> None:
        """Remove one rollout."""
        self.num_tokens -= _num_tokens(rollout)
        self.num_slot_tokens -= _slot_tokens(rollout)


class MemoryBudget:
    """The memory that requests in progress may reserve together.

    Args:
        model: The language model. Its cache size per token is known after its first draft.
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
        if self._max_bytes is None or not keeps_cache(self._model):
            return None
        size = read_optional(self._model, "bytes_per_token")
        return self._max_bytes // size if isinstance(size, int) and size > 0 else None

    def describe(self) -> str:
        """Return the limits as text."""
        in_slots = f"{self._max_slot_tokens} tokens in cache slots, which are longer than texts"
        limits = [
            None if self._max_tokens is None else f"{self._max_tokens} tokens in all",
            None if self._max_slot_tokens is None else in_slots,
        ]
        return " and ".join(filter(None, limits))

    def holds(self, rollout: Rollout, reserved: Reserved) -> bool:
        """Return whether a request fits into what is not reserved."""
        num_tokens = reserved.num_tokens + _num_tokens(rollout)
        num_slot_tokens = reserved.num_slot_tokens + _slot_tokens(rollout)
        max_slot_tokens = self._max_slot_tokens
        return (self._max_tokens is None or num_tokens <= self._max_tokens) and (
            max_slot_tokens is None or num_slot_tokens <= max_slot_tokens
        )


def _num_tokens(rollout: Rollout) -> int:
    """Return the tokens of the longest possible answer after each of its prompts."""
    return sum(size + rollout.sampling.max_tokens for size in rollout.prompt_lens)


def _slot_tokens(rollout: Rollout) -> int:
    """Return the capacity of each prompt's final slot, plus its first one if it outgrows that."""
    total = 0
    for size in rollout.prompt_lens:
        first, last = slot_capacity(size), slot_capacity(size + rollout.sampling.max_tokens)
        total += last if first == last else first + last
    return total
