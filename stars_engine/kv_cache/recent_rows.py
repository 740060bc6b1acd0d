"""The rows of the latest passes, any of which may still be accepted."""

from __future__ import annotations

import weakref

from stars_engine.kv_cache.cache_entry import UncommittedRows

_MAX_PASSES = 8  # whose rows may still be adopted
_MAX_BYTES = 1 << 30  # of passes before the latest, unless the limit of the cache is lower


class RecentRows:
    """Uncommitted rows of the latest passes; earlier ones are freed."""

    def __init__(self) -> None:
        self._rows: list[weakref.ref[UncommittedRows]] = []  # the latest last

    def add(self, rows: UncommittedRows, bytes_per_token: int, max_bytes: int | None) -> None:
        """Add the rows of a pass, and free those of passes too many.

        Args:
            rows: The rows.
            bytes_per_token: Memory of one token.
            max_bytes: The limit of the cache; None for a default.
        """
        recent = self._alive()
        limit = _MAX_BYTES if max_bytes is None else min(max_bytes, _MAX_BYTES)
        max_tokens = limit // max(1, bytes_per_token)
        while recent and (
            len(recent) >= _MAX_PASSES or sum(each.num_tokens for each in recent) > max_tokens
        ):
            recent.pop(0).drop()
        for each in recent:
            each.last_output = None  # logits of all rows are large, and the next step needs few
        self._rows = [weakref.ref(each) for each in [*recent, rows]]

    def note_use(self, rows: UncommittedRows) -> None:
        """Put rows last, unless they were freed."""
        if self._rows and self._rows[-1]() is not rows and rows.kv is not None:
            others = [ref for ref in self._rows if ref() is not rows]
            self._rows = [*others, weakref.ref(rows)]

    @property
    def num_tokens(self) -> int:
        """Tokens that the rows have room for. May be read from any thread."""
        return sum(rows.num_tokens for rows in self._alive())

    def free(self) -> None:
        """Free all rows."""
        for rows in self._alive():
            rows.drop()
        self._rows.clear()

    def _alive(self) -> list[UncommittedRows]:
        return [rows for ref in tuple(self._rows) if (rows := ref()) is not None]
