"""A decoder whose candidates share the KV of their prefix."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import torch

from stars_engine.backends.decoders import Branches, Decoder, Forward
from stars_engine.hidden_states.probes import ProbeSet, StepOutput
from stars_engine.kv_cache.cache_entry import CachedPrefix, UncommittedRows
from stars_engine.kv_cache.cuda_graphs import CudaGraphs, GraphRows
from stars_engine.kv_cache.forward_pass import EagerRows, ModelRunner
from stars_engine.kv_cache.prefix_cache import PinnedPrefix, PrefixCache, PrefixRequest

_MAX_TOKENS = 512  # of prompts, computed in one pass; between two, others may be drafted


class SharedPrefixDecoder(Decoder):
    """Keeps the KV of each prefix once, in a slot, and computes only new tokens.

    Args:
        model: A causal language model of transformers whose attention goes through its
            `AttentionInterface`.
        context_len: Positions it has; None for no limit.
        use_graphs: Whether candidates are decoded in fixed shapes, by CUDA graphs on a GPU.
    """

    def __init__(
        self, model: Any, context_len: int | None = None, *, use_graphs: bool = False
    ) -> None:
        self._forward = forward = Forward(model)
        self._runner = runner = ModelRunner(
            model,
            lambda ids, positions, cache: forward(ids, positions=positions, cache=cache),
            context_len,
        )
        self.cache = PrefixCache(self._extend, runner.weights_changed, max_tokens=_MAX_TOKENS)
        self._use_graphs = use_graphs
        self._graphs = CudaGraphs(runner, self.cache.pool)

    def compute(self, prefixes: Sequence[tuple[Sequence[int], Any]]) -> list[PinnedPrefix]:
        """See `Decoder`."""
        return self.cache.fetch([_prefix_request(*prefix) for prefix in prefixes])

    def compute_in_parts(
        self, prefixes: Sequence[tuple[Sequence[int], Any]]
    ) -> Generator[int, None, list[PinnedPrefix]]:
        """See `Decoder`."""
        asked = [_prefix_request(*prefix) for prefix in prefixes]
        return (yield from self.cache.fetch_in_parts(asked))

    def set_probes(self, probes: ProbeSet | None) -> None:
        """See `Decoder`."""
        self._forward.probes = probes
        self._graphs.clear()
        self.cache.clear()

    def branch(self, prefixes: Sequence[PinnedPrefix], num_tokens: int) -> Branches:
        """See `Decoder`."""
        pool, cached = self.cache.pool, [pinned.prefix for pinned in prefixes]
        if self._graphs.pool is not pool:  # the cache was invalidated
            self._graphs = CudaGraphs(self._runner, pool)
        started = self._graphs.start(cached, num_tokens) if self._use_graphs else None
        rows: EagerRows | GraphRows
        if started is not None:
            rows, uncommitted = started
        else:
            rows = EagerRows(pool, cached, num_tokens, self._runner.device)
            uncommitted = UncommittedRows(rows.kv)
        self.cache.add_uncommitted(cached, uncommitted)
        branches = _SharedBranches(self._runner, self.cache, rows, uncommitted)
        if isinstance(rows, GraphRows):
            rows.keep_for(branches)
        return branches

    @property
    def num_resets(self) -> int:
        """See `Decoder`."""
        return self.cache.num_resets

    @property
    def bytes_per_token(self) -> int:
        """See `Decoder`."""
        return self.cache.bytes_per_token

    def limit_cache(self, max_bytes: int | None) -> None:
        """See `Decoder`."""
        self.cache.limit_cache(max_bytes)

    def memory_usage(self) -> dict[str, int]:
        """See `ReportsMemory`."""
        return {**self.cache.memory_usage(), "packed_weights": self._runner.packed_bytes}

    def free_unused(self) -> None:
        """See `Decoder`."""
        self._graphs.clear()
        self.cache.free_unused()

    def _extend(
        self,
        prefixes: Sequence[CachedPrefix],
        ids: Sequence[list[int]],
        columns: Sequence[Sequence[int]],
    ) -> list[list[StepOutput]]:
        output: StepOutput = self._runner.extend(prefixes, ids, self.cache.pool)
        return [[output.row(index)] for index in range(len(prefixes))]


def _prefix_request(ids: Sequence[int], known: Any) -> PrefixRequest:
    pinned = known if isinstance(known, PinnedPrefix) else None
    return PrefixRequest(list(ids), (len(ids) - 1,), pinned)


class _SharedBranches(Branches):
    """Rows of scratch KV; one that is accepted moves into its prefix later."""

    def __init__(
        self,
        runner: ModelRunner,
        cache: PrefixCache,
        rows: EagerRows | GraphRows,
        uncommitted: UncommittedRows,
    ) -> None:
        self._runner, self._cache = runner, cache
        self._rows, self._uncommitted = rows, uncommitted
        self._output = StepOutput(torch.empty(0))

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """See `Branches`."""
        self._cache.note_use(self._uncommitted)
        if isinstance(self._rows, GraphRows):
            self._output = self._rows.step(tokens)
        else:
            self._output = self._runner(self._rows, tokens[:, None])
        self._uncommitted.append(tokens)
        return self._output.logits

    @property
    def features(self) -> torch.Tensor | None:
        """See `Branches`."""
        return self._output.features

    def keep_last(self) -> None:
        """See `Branches`."""
        if self._uncommitted.kv is None:  # freed during a pause
            return
        is_static = isinstance(self._rows, GraphRows)  # the next rows of this shape overwrite it
        self._uncommitted.last_output = self._output.clone() if is_static else self._output
