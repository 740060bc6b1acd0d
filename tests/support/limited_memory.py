"""A model on a machine with little memory."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch

from stars_engine.backends.base import DraftRequest, PrefixHandle
from stars_engine.backends.transformers import TransformersBackend

FULL = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: not enough memory"


class LimitedMemoryModel:
    """A model on a machine with little memory: for prefixes, for rows, or at chosen drafts.

    Args:
        model: The model.
        num_prefixes: That fit at once.
        num_rows: That fit at once.
        failing: Drafts that find no memory, counted from 0.

    Attributes:
        num_computed: Prefixes of which nothing was cached when they were drafted from.
        most_live: Prefixes cached at once, at most.
        row_counts: Of the drafts that found memory.
    """

    def __init__(
        self,
        model: TransformersBackend,
        *,
        num_prefixes: int = 100,
        num_rows: int = 100,
        failing: Sequence[int] = (),
    ) -> None:
        self._model = model
        self._num_prefixes, self._num_rows, self._failing = num_prefixes, num_rows, failing
        self._handles: weakref.WeakSet[PrefixHandle] = weakref.WeakSet()
        self.num_drafts = self.num_computed = self.most_live = 0
        self.row_counts: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    # Since Python 3.12, a protocol does not count names that `__getattr__` finds.

    @property
    def bytes_per_token(self) -> int:
        return self._model.bytes_per_token

    def limit_cache(self, max_bytes: int | None) -> None:
        self._model.limit_cache(max_bytes)

    def free_unused(self) -> None:
        self._model.free_unused()

    @property
    def live(self) -> set[PrefixHandle]:
        """Handles of prefixes that are cached."""
        return {handle for handle in self._handles if handle.cached is not None}

    def draft(self, requests: Sequence[DraftRequest]) -> Any:
        self.num_drafts += 1
        if self.num_drafts - 1 in self._failing:
            raise RuntimeError(FULL)
        if len(requests) > self._num_rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        live = self.live
        new = {request.handle for request in requests} - live
        if len(live) + len(new) > self._num_prefixes:
            raise RuntimeError(FULL)
        drafts = self._model.draft(requests)
        self._handles.update(new)
        self.num_computed += len(new)
        self.most_live = max(self.most_live, len(self.live))
        self.row_counts.append(len(requests))
        return drafts
