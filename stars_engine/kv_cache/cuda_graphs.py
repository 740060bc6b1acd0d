"""Decode steps of fixed shapes: what a CUDA graph can replay.

A decode step of a large model is a thousand small kernels, which take longer to launch than to run.
A graph launches them at once, but always the same ones on the same memory: so prefixes are copied
into buffers when a round begins, lengths and positions are tensors, and own tokens are written at a
position that is one. Nothing in a step waits for the device.

Shapes are rounded up, so that few graphs serve all rounds. Without a GPU the same steps run one
kernel after the other.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from stars_engine.kv_cache.forward_pass import SharingPass
from stars_engine.kv_cache.layout import Mask, Prefixes, Rows, View
from stars_engine.kv_cache.pool import ByLayer, Slot, SlotPool
from stars_engine.kv_cache.prefixes import capacity_for
from stars_engine.kv_cache.scratch import OwnTokens
from stars_engine.memory import is_out_of_memory

logger = logging.getLogger(__name__)

_MOST_COPIED = 2 << 30  # bytes of prefixes, of all shapes that are kept
_MOST_SHAPES = 32  # that are kept
_WARM_UPS = 2


class Shape(NamedTuple):
    """What a graph is for.

    Attributes:
        num_rows: Candidates.
        num_prefixes: Prefixes that they go on from.
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
class _StaticPrefixes(Prefixes):
    """Prefixes whose lengths are a tensor, `(prefixes,)`, and own positions too, `(1,)`."""

    true_lengths: torch.Tensor | None = None
    position: torch.Tensor | None = None

    def visible(
        self, window: int | None, num_before: int, num_new: int, device: torch.device
    ) -> Mask:
        """See `Prefixes`. Nothing is cut off in front: where a window begins is not known here."""
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

    def forget_masks(self) -> None:
        """Positions have moved on."""
        self._masks.clear()


@dataclass(frozen=True, slots=True)
class _StaticView(View):
    """Own tokens fill all columns; those beyond the position are not there yet."""

    position: torch.Tensor | None = None

    def own_mask(
        self, window: int | None, num_new: int, num_own: int, device: torch.device
    ) -> torch.Tensor | None:
        """See `View`."""
        assert self.position is not None
        columns = torch.arange(num_own, device=device)
        mask = columns <= self.position[:, None]
        return mask & (columns > self.position[:, None] - window) if window is not None else mask


class _StaticOwn(OwnTokens):
    """Own tokens, written at a position that is a tensor; all columns are returned."""

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
        """Take a layer's new keys and values, of one token."""
        if layer_idx == len(self.keys):
            # Zeros: columns to come are masked, and must not be nan.
            self.keys.append(self._empty(key_states).zero_())
            self.values.append(self._empty(value_states).zero_())
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        keys.index_copy_(2, self._position, key_states)
        values.index_copy_(2, self._position, value_states)
        return keys, values


class StaticRows:
    """Buffers of one shape, and the graph that was captured on them.

    Args:
        read: Passes through the model.
        pool: Where prefixes are.
        shape: Largest numbers.
    """

    def __init__(self, read: SharingPass, pool: SlotPool, shape: Shape) -> None:
        device = read.device
        self._read, self._pool, self._shape = read, pool, shape
        self._position = torch.zeros(1, dtype=torch.long, device=device)
        self._starts = torch.zeros(shape.num_rows, dtype=torch.long, device=device)
        self._ids = torch.zeros(shape.num_rows, 1, dtype=torch.long, device=device)
        self._lengths = torch.zeros(shape.num_prefixes, dtype=torch.long, device=device)
        self._places = torch.zeros(shape.num_rows, dtype=torch.long, device=device)
        self._keys, self._values = pool.empty(shape.num_prefixes, shape.width)
        self._prefixes = _StaticPrefixes(
            self._keys,
            self._values,
            [],
            Rows(shape.most, self._places),
            true_lengths=self._lengths,
            position=self._position,
        )
        self.own = _StaticOwn(shape.num_rows, shape.num_tokens, self._position)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits = torch.empty(0)

    def begin(self, slots: Sequence[Slot], lengths: Sequence[int]) -> None:
        """Start rows that continue prefixes, one for each slot given (repeats are rows apart)."""
        distinct = dict(zip(slots, lengths, strict=True))
        index_of = {slot: index for index, slot in enumerate(distinct)}
        self._pool.copy_out(list(distinct), list(distinct.values()), self._keys, self._values)
        places = _places([index_of[slot] for slot in slots], self._shape)
        self._places.copy_(torch.tensor(places))
        self._lengths.zero_()[: len(distinct)] = torch.tensor(list(distinct.values()))
        self._starts.zero_()[: len(slots)] = torch.tensor(lengths)
        self._position.zero_()
        self._ids.zero_()
        for states in self.own.values:  # what a mask hides is multiplied by 0, and must not be nan
            states.zero_()
        if self._read.device.type == "cuda" and self._graph is None:
            self._capture()

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Append one token to each row, `(rows,)`; return the logits after it, `(rows, vocab)`.

        They are good until the next step.
        """
        self._ids[: len(tokens), 0] = tokens
        if self._graph is None:
            self._logits = self._run()
        else:
            self._graph.replay()
        self._position += 1
        return self._logits[: len(tokens)]

    def positions(self, count: int) -> torch.Tensor:
        """Return `(rows, 1)`, of the next token."""
        return self._starts[:, None] + self._position

    def view(self) -> View:
        """Return what the next token attends to."""
        return _StaticView([self._prefixes], position=self._position)

    def states(self, row: int, count: int) -> tuple[ByLayer, ByLayer]:
        """Return the keys and values of a row's first own tokens, by layer."""
        return self.own.first(row, count)

    def _run(self) -> torch.Tensor:
        self._prefixes.forget_masks()
        logits: torch.Tensor = self._read(self, self._ids)
        return logits

    def _capture(self) -> None:
        """Record a step; other threads may use the device meanwhile, but not the model."""
        stream: Any = torch.cuda.Stream(self._read.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._read.device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                self._run()
        torch.cuda.current_stream(self._read.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        mode = "thread_local"
        with self._read.turn, torch.cuda.graph(graph, capture_error_mode=mode):
            self._logits = self._run()
        self._graph = graph


class StaticSteps:
    """Rows of fixed shapes, kept by shape.

    Args:
        read: Passes through the model.
        pool: Where prefixes are.
    """

    def __init__(self, read: SharingPass, pool: SlotPool) -> None:
        self._read, self._pool = read, pool
        self._by_shape: dict[Shape, StaticRows] = {}  # the latest used last
        self._has_worked = self._is_off = False

    def begin(
        self, slots: Sequence[Slot], lengths: Sequence[int], num_tokens: int
    ) -> StaticRows | None:
        """Return rows that continue prefixes; None if their prefixes are too much to copy."""
        shape = shape_for(slots, lengths, num_tokens)
        if self._is_off or not shape.num_tokens or self._num_bytes(shape) > _MOST_COPIED:
            return None
        rows = self._by_shape.pop(shape, None)
        try:
            if rows is None:
                self._make_room(self._num_bytes(shape))
                rows = StaticRows(self._read, self._pool, shape)
            rows.begin(slots, lengths)
        except Exception as error:
            # The check at load has to know; afterwards there is another way.
            if not self._has_worked or is_out_of_memory(error):
                raise
            logger.warning("no more steps of fixed shapes: they failed at %s", shape, exc_info=True)
            self._is_off = True
            self.forget()
            return None
        self._by_shape[shape] = rows
        self._has_worked = True
        return rows

    def _make_room(self, num_bytes: int) -> None:
        """Let go of shapes, the longest unused first, until one more may be kept."""
        while self._by_shape and (
            len(self._by_shape) >= _MOST_SHAPES
            or sum(map(self._num_bytes, self._by_shape)) + num_bytes > _MOST_COPIED
        ):
            del self._by_shape[next(iter(self._by_shape))]

    def _num_bytes(self, shape: Shape) -> int:
        return shape.num_prefixes * shape.width * self._pool.bytes_per_token

    def forget(self) -> None:
        """Let go of all buffers and graphs."""
        self._by_shape.clear()


def shape_for(slots: Sequence[Slot], lengths: Sequence[int], num_tokens: int) -> Shape:
    """Return the shape that serves some rows, rounded up."""
    counts: dict[Slot, int] = {}
    for slot in slots:
        counts[slot] = counts.get(slot, 0) + 1
    num_rows, num_prefixes = _rounded(len(slots)), _rounded(len(counts))
    # Rows that are there for the shape alone need places, too.
    most = max(_rounded(max(counts.values())), -(-num_rows // num_prefixes))
    return Shape(num_rows, num_prefixes, most, capacity_for(max(lengths)), num_tokens)


def _rounded(count: int) -> int:
    """1, 2, 4, 8, 16, 24, 32, ...: graphs are few, and hardly a third of a batch is for nothing."""
    power = 1 << (count - 1).bit_length()
    return power if power <= 16 else -(-count // 8) * 8


def _places(prefixes: Sequence[int], shape: Shape) -> list[int]:
    """Return where each row stands in the grid: its prefix's places, then any that are left."""
    used = [0] * shape.num_prefixes
    places = []
    for prefix in prefixes:
        places.append(prefix * shape.most + used[prefix])
        used[prefix] += 1
    taken = set(places)
    left = (place for place in range(shape.num_prefixes * shape.most) if place not in taken)
    return [*places, *(next(left) for _ in range(shape.num_rows - len(places)))]
