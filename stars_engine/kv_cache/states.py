"""A store for decoders whose states are not in slots: each prefix has its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from stars_engine.kv_cache.cached_prefix import CachedPrefix
from stars_engine.kv_cache.scratch import ByLayer


class StatePrefix(CachedPrefix):
    """A prefix with states of its own.

    Attributes:
        states: Whatever its decoder keeps; None before anything is computed.
    """

    __slots__ = ("states",)

    def __init__(self) -> None:
        super().__init__()
        self.states: Any = None


class StateStore:
    """Prefixes that exist as long as they are pinned; see `PrefixStore`.

    Args:
        copy_states: Returns a copy of the states of the first tokens: `(states, length)`.
        exact_only: Whether only states of whole prefixes can be copied, as those of recurrent
            layers.

    Attributes:
        max_bytes: Without meaning here: nothing is kept that is not pinned.
        bytes_per_token: Memory of one token, as far as the decoder has found out.
    """

    def __init__(self, copy_states: Callable[[Any, int], Any], *, exact_only: bool = False) -> None:
        self.exact_only = exact_only
        self.max_bytes: int | None = None
        self.bytes_per_token = 0
        self._copy_states = copy_states
        self._prefixes: dict[StatePrefix, None] = {}

    def prefixes(self) -> Iterator[StatePrefix]:
        """Yield all prefixes."""
        return iter(tuple(self._prefixes))

    def allocate(self, lengths: Sequence[int]) -> list[StatePrefix]:
        """Return an empty prefix for each length."""
        fresh = [StatePrefix() for _ in lengths]
        self._prefixes |= dict.fromkeys(fresh)
        return fresh

    def pin(self, prefix: StatePrefix) -> bool:
        """Return False: all are pinned."""
        return False

    def unpin(self, prefix: StatePrefix) -> None:
        """Free a prefix. May be called from any thread."""
        self._prefixes.pop(prefix, None)

    def copy(self, source: StatePrefix, target: StatePrefix, length: int) -> None:
        """Copy the first tokens of a prefix into an empty one."""
        target.states = self._copy_states(source.states, length) if length else None
        target.append(source.token_ids[:length])

    def trim(self, prefix: StatePrefix, length: int) -> None:
        """Keep only the first tokens of a prefix."""
        if length < len(prefix.token_ids):
            prefix.states = self._copy_states(prefix.states, length) if length else None
            prefix.cut(length)

    def write(
        self, prefix: StatePrefix, keys: ByLayer, values: ByLayer, ids: Sequence[int]
    ) -> None:
        """Raise: rows beyond such prefixes are not remembered."""
        raise NotImplementedError

    def free_unused(self) -> None:
        """Do nothing: all are pinned."""
