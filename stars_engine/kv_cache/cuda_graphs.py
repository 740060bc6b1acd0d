"""CUDA graphs: decode steps of fixed shapes.

A decode step of a large model is a thousand small kernels, which take longer to launch than to run.
A graph launches them at once, but always the same kernels on the same memory. So prefixes are
copied into buffers before the first step, lengths and positions are tensors, and scratch KV is
written at a position that is a tensor. Nothing in a step waits for the device.

Shapes are rounded up, so that few graphs are captured. Without a GPU the same steps run kernel by
kernel.
"""

from __future__ import annotations

import logging
import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from stars_engine.hidden_states.probes import StepOutput
from stars_engine.kv_cache.cache_entry import CachedPrefix, UncommittedRows
from stars_engine.kv_cache.forward_pass import ModelRunner
from stars_engine.kv_cache.layout import AttentionLayout, Mask, PrefixGroup, RowPlacement
from stars_engine.kv_cache.pool import SlotPool
from stars_engine.kv_cache.scratch import ScratchKV
from stars_engine.kv_cache.slot_capacity import capacity_for
from stars_engine.out_of_memory import is_out_of_memory

logger = logging.getLogger(__name__)

_MAX_COPIED_BYTES = 2 << 30  # of prefixes, in the buffers of all shapes
_MAX_SHAPES = 32
_WARM_UPS = 2


class Shape(NamedTuple):
    """What a graph is captured for; each is a maximum.

    Attributes:
        num_rows: Candidates.
        num_prefixes: Prefixes that they continue.
        most: Candidates of one prefix.
        width: Tokens of a prefix.
        num_tokens: Steps.
    """

    num_rows: int
    num_prefixes: int
    most: int
    width: int
    num_tokens: int


@dataclass(slots=True)
class _GraphPrefixGroup(PrefixGroup):
    """Prefixes whose lengths are a tensor, `(prefixes,)`, as is the rows' position, `(1,)`."""

    true_lengths: torch.Tensor | None = None
    position: torch.Tensor | None = None

    def mask(self, window: int | None, num_before: int, num_new: int, device: torch.device) -> Mask:
        """See `PrefixGroup`. All columns: where a window begins is not known here."""
        if window not in self._masks:
            assert self.true_lengths is not None
            assert self.position is not None
            columns = torch.arange(self.keys[0].shape[2], device=device)
            lengths = self.true_lengths[:, None]
            mask = columns < lengths
            if window is not None:
                mask = mask & (columns > lengths + self.position - window)
            self._masks[window] = 0, mask[:, None, None, None]
        return self._masks[window]

    def clear_masks(self) -> None:
        """Forget masks of other positions."""
        self._masks.clear()


@dataclass(frozen=True, slots=True)
class _GraphLayout(AttentionLayout):
    """Scratch KV of all steps; columns beyond the position are not written yet."""

    position: torch.Tensor | None = None

    def scratch_mask(
        self, window: int | None, num_new: int, num_scratch: int, device: torch.device
    ) -> torch.Tensor | None:
        """See `AttentionLayout`."""
        assert self.position is not None
        columns = torch.arange(num_scratch, device=device)
        mask = columns <= self.position[:, None]
        return mask & (columns > self.position[:, None] - window) if window is not None else mask


class _GraphScratchKV(ScratchKV):
    """Scratch KV written at a position that is a tensor; all columns are returned."""

    def __init__(self, num_rows: int, capacity: int, position: torch.Tensor) -> None:
        super().__init__(num_rows, capacity)
        self._position = position

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append a layer's keys and values, of one token."""
        if layer_idx == len(self.keys):
            # Zeros: columns to come are masked, and must not be nan.
            self.keys.append(self._empty(key_states).zero_())
            self.values.append(self._empty(value_states).zero_())
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        keys.index_copy_(2, self._position, key_states)
        values.index_copy_(2, self._position, value_states)
        return keys, values


class GraphRows:
    """Rows of one shape: their buffers, and the graph captured on them.

    Args:
        runner: Runs the model.
        pool: Where prefixes are.
        shape: Their shape.
    """

    def __init__(self, runner: ModelRunner, pool: SlotPool, shape: Shape) -> None:
        device = runner.device
        self._runner, self._pool, self._shape = runner, pool, shape
        self._position = torch.zeros(1, dtype=torch.long, device=device)
        self._starts = torch.zeros(shape.num_rows, dtype=torch.long, device=device)
        self._ids = torch.zeros(shape.num_rows, 1, dtype=torch.long, device=device)
        self._lengths = torch.zeros(shape.num_prefixes, dtype=torch.long, device=device)
        self._cells = torch.zeros(shape.num_rows, dtype=torch.long, device=device)
        self._keys, self._values = pool.new_tensors(shape.num_prefixes, shape.width)
        self._group = _GraphPrefixGroup(
            self._keys,
            self._values,
            [],
            RowPlacement(shape.most, self._cells),
            true_lengths=self._lengths,
            position=self._position,
        )
        self.kv = _GraphScratchKV(shape.num_rows, shape.num_tokens, self._position)
        self._uncommitted: weakref.ref[UncommittedRows] | None = None
        self._user: weakref.ref[object] | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._output = StepOutput(torch.empty(0))

    @property
    def is_used(self) -> bool:
        """Whether a draft uses the buffers; it may be paused."""
        return self._user is not None and self._user() is not None

    def keep_for(self, user: object) -> None:
        """Start no other rows in the buffers as long as an object exists."""
        self._user = weakref.ref(user)

    def start(self, prefixes: Sequence[CachedPrefix]) -> UncommittedRows:
        """Start a row on each of the given prefixes; repeats are separate rows."""
        last = self._uncommitted() if self._uncommitted else None
        if last is not None and last.kv is self.kv:  # one of its rows may still be accepted
            last.kv = self.kv.clone()
        lengths = [len(prefix.token_ids) for prefix in prefixes]
        distinct = dict(zip(prefixes, lengths, strict=True))
        index_of = {prefix: index for index, prefix in enumerate(distinct)}
        self._pool.gather(list(distinct), list(distinct.values()), self._keys, self._values)
        cells = _cells([index_of[prefix] for prefix in prefixes], self._shape)
        self._cells.copy_(torch.tensor(cells))
        self._lengths.zero_()[: len(distinct)] = torch.tensor(list(distinct.values()))
        self._starts.zero_()[: len(prefixes)] = torch.tensor(lengths)
        self._position.zero_()
        self._ids.zero_()
        for states in self.kv.values:  # what a mask hides is multiplied by 0, and must not be nan
            states.zero_()
        if self._runner.device.type == "cuda" and self._graph is None:
            self._capture()
        rows = UncommittedRows(self.kv)
        self._uncommitted = weakref.ref(rows)
        return rows

    def step(self, tokens: torch.Tensor) -> StepOutput:
        """Append one token to each row, `(rows,)`; return the output after it.

        It is overwritten by the next step.
        """
        self._ids[: len(tokens), 0] = tokens
        if self._graph is None:
            self._output = self._run()
        else:
            self._graph.replay()
        self._position += 1
        logits, features = self._output
        count = len(tokens)
        return StepOutput(logits[:count], None if features is None else features[:count])

    def positions(self, count: int) -> torch.Tensor:
        """Return the positions of the next token, `(rows, 1)`."""
        return self._starts[:, None] + self._position

    def layout(self) -> AttentionLayout:
        """Return what the next token attends to."""
        return _GraphLayout([self._group], position=self._position)

    def _run(self) -> StepOutput:
        self._group.clear_masks()
        output: StepOutput = self._runner(self, self._ids)
        return output

    def _capture(self) -> None:
        """Capture a step. Other threads may use the device meanwhile, but not the model."""
        stream: Any = torch.cuda.Stream(self._runner.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._runner.device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                self._run()
        torch.cuda.current_stream(self._runner.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        mode = "thread_local"
        with self._runner.lock, torch.cuda.graph(graph, capture_error_mode=mode):
            self._output = self._run()
        self._graph = graph


class CudaGraphs:
    """The graphs of a model, by shape.

    Args:
        runner: Runs the model.
        pool: Where prefixes are.
    """

    def __init__(self, runner: ModelRunner, pool: SlotPool) -> None:
        self.pool = pool
        self._runner = runner
        self._by_shape: dict[Shape, GraphRows] = {}  # the most recently used last
        self._has_worked = self._is_off = False

    def start(
        self, prefixes: Sequence[CachedPrefix], num_tokens: int
    ) -> tuple[GraphRows, UncommittedRows] | None:
        """Start a row on each prefix.

        Returns:
            The rows; None if the prefixes are too much to copy, or if a paused draft uses rows of
            this shape.
        """
        shape = shape_for(prefixes, num_tokens)
        if self._is_off or not shape.num_tokens or self._num_bytes(shape) > _MAX_COPIED_BYTES:
            return None
        if shape in self._by_shape and self._by_shape[shape].is_used:
            return None
        rows = self._by_shape.pop(shape, None)
        try:
            if rows is None:
                self._evict_for(self._num_bytes(shape))
                rows = GraphRows(self._runner, self.pool, shape)
            uncommitted = rows.start(prefixes)
        except Exception as error:
            # The self-check at load has to see it; afterwards rows can run without a graph.
            if not self._has_worked or is_out_of_memory(error):
                raise
            logger.warning("CUDA graphs are disabled: they failed at %s", shape, exc_info=True)
            self._is_off = True
            self.clear()
            return None
        self._by_shape[shape] = rows
        self._has_worked = True
        return rows, uncommitted

    def clear(self) -> None:
        """Free all buffers and graphs."""
        self._by_shape.clear()

    def _evict_for(self, num_bytes: int) -> None:
        """Free the least recently used shapes until one more may be kept."""
        while self._by_shape and (
            len(self._by_shape) >= _MAX_SHAPES
            or sum(map(self._num_bytes, self._by_shape)) + num_bytes > _MAX_COPIED_BYTES
        ):
            del self._by_shape[next(iter(self._by_shape))]

    def _num_bytes(self, shape: Shape) -> int:
        return shape.num_prefixes * shape.width * self.pool.bytes_per_token


def shape_for(prefixes: Sequence[CachedPrefix], num_tokens: int) -> Shape:
    """Return the shape for some rows, rounded up."""
    counts = Counter(prefixes)
    num_rows, num_prefixes = _rounded(len(prefixes)), _rounded(len(counts))
    # Rows that only fill up the shape need cells, too.
    most = max(_rounded(max(counts.values())), -(-num_rows // num_prefixes))
    longest = max(len(prefix.token_ids) for prefix in counts)
    return Shape(num_rows, num_prefixes, most, capacity_for(longest), num_tokens)


def _rounded(count: int) -> int:
    """1, 2, 4, 8, 16, 24, 32, ...: few graphs, and hardly a third of a batch is padding."""
    power = 1 << (count - 1).bit_length()
    return power if power <= 16 else -(-count // 8) * 8


def _cells(prefixes: Sequence[int], shape: Shape) -> list[int]:
    """Return the cell of each row in the grid: its prefix's cells, then any that are left."""
    used = [0] * shape.num_prefixes
    cells = []
    for prefix in prefixes:
        cells.append(prefix * shape.most + used[prefix])
        used[prefix] += 1
    taken = set(cells)
    left = (cell for cell in range(shape.num_prefixes * shape.most) if cell not in taken)
    return [*cells, *(next(left) for _ in range(shape.num_rows - len(cells)))]
