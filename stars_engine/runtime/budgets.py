"""How much of an engine's budgets requests take, and whether one more fits beside the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from stars_engine.algorithm.rollout import Rollout
from stars_engine.config import EngineParams
from stars_engine.kv_cache.prefixes import capacity_of_slot
from stars_engine.memory import KeepsCache


@dataclass
class Taken:
    """What requests in progress take.

    Attributes:
        places: By reward model, by its identity.
        num_tokens: Of prompts and answers, at most.
        num_slot_tokens: Of the slots that they grow to, at most.
    """

    places: Counter[int] = field(default_factory=Counter)
    num_tokens: int = 0
    num_slot_tokens: int = 0

    @classmethod
    def by(cls, rollouts: Iterable[Rollout], places: Mapping[int, int]) -> Taken:
        """Return what rollouts take together."""
        taken = cls(Counter(places))
        for rollout in rollouts:
            taken.add(rollout)
        return taken

    def add(self, rollout: Rollout) -> None:
        """Count one more, its place apart."""
        self.num_tokens += rollout.num_tokens_at_most
        self.num_slot_tokens += _slot_tokens(rollout)


class Budget:
    """What may be taken.

    Args:
        params: The settings.
        model: The language model, loaded.
    """

    def __init__(self, params: EngineParams, model: object) -> None:
        self.max_tokens = params.max_prefix_tokens
        self.max_slot_tokens: int | None = None
        bytes_per_token = model.bytes_per_token if isinstance(model, KeepsCache) else 0
        if params.max_cache_bytes is not None and bytes_per_token:
            self.max_slot_tokens = params.max_cache_bytes // bytes_per_token

    def told(self) -> str:
        """Return what may be in progress at a time."""
        slots = f"{self.max_slot_tokens} tokens in slots, which are longer than their texts"
        bounds = [
            None if self.max_tokens is None else f"{self.max_tokens} tokens in all",
            None if self.max_slot_tokens is None else slots,
        ]
        return " and ".join(filter(None, bounds))

    def holds(self, rollout: Rollout, taken: Taken) -> bool:
        """Whether a request fits beside what is taken."""
        num_tokens = taken.num_tokens + rollout.num_tokens_at_most
        num_slot_tokens = taken.num_slot_tokens + _slot_tokens(rollout)
        return (self.max_tokens is None or num_tokens <= self.max_tokens) and (
            self.max_slot_tokens is None or num_slot_tokens <= self.max_slot_tokens
        )


def _slot_tokens(rollout: Rollout) -> int:
    """Return the tokens of a rollout's slot, and of the one that it may grow out of."""
    first = capacity_of_slot(len(rollout.prompt_ids))
    last = capacity_of_slot(rollout.num_tokens_at_most)
    return last if first == last else first + last
