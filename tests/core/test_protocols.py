"""Optional abilities of models are found on wrappers too, with every Python version."""

from __future__ import annotations

from collections.abc import Sequence

from stars_engine.out_of_memory import depends_on_weights, keeps_cache
from stars_engine.rewards.base import is_offloaded
from stars_engine.rewards.reward_requests import gathers, single_models
from stars_engine.types import RewardInput


class Able:
    """A reward with every optional ability."""

    bytes_per_token = 0
    max_concurrency, timeout_s, batched = 1, None, False

    def score(self, inputs: Sequence[RewardInput]) -> list[float]:
        return [0.0] * len(inputs)

    def limit_cache(self, max_bytes: int | None) -> None: ...
    def free_unused(self) -> None: ...
    def invalidate_if_changed(self) -> None: ...
    def divide(self, request: object) -> list[object]:
        return [request]

    def models(self) -> list[object]:
        return [self]


class Wrapper:
    def __init__(self, inner: object) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


class Plain:
    def score(self, inputs: Sequence[RewardInput]) -> list[float]:
        return [0.0] * len(inputs)


def test_what_a_wrapper_forwards_counts() -> None:
    able, plain = Able(), Plain()
    for ability in (keeps_cache, depends_on_weights, is_offloaded, gathers):
        assert ability(able)
        assert ability(Wrapper(able))
        assert not ability(plain)
        assert not ability(Wrapper(plain))
    assert single_models(Wrapper(able)) == [able]
    assert single_models(plain) == [plain]
