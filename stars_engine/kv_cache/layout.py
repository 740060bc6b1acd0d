"""The attention layout: which keys the rows of a pass attend to, in prefixes and in scratch KV."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import torch


@dataclass(frozen=True, slots=True)
class RowPlacement:
    """Which prefix each row of a batch continues, as cells in a grid.

    Attributes:
        most: Rows of one prefix, at most.
        cells: The cell of each row in a grid of `most` rows for each prefix, `(rows,)`; None if
            the rows fill it in order.
    """

    most: int
    cells: torch.Tensor | None

    @classmethod
    def of(cls, prefixes: Sequence[int], device: torch.device) -> Self:
        """Place rows by the index of each one's prefix."""
        most = max(Counter(prefixes).values())
        nexts = [itertools.count(index * most) for index in range(max(prefixes) + 1)]
        cells = [next(nexts[prefix]) for prefix in prefixes]
        if cells == list(range((max(prefixes) + 1) * most)):
            return cls(most, None)
        return cls(most, torch.tensor(cells, device=device))

    def to_grid(self, states: torch.Tensor, num_prefixes: int) -> torch.Tensor:
        """Put rows in their cells: `(rows, ...)` to `(prefixes * most, ...)`."""
        if self.cells is None:
            return states
        grid = states.new_zeros(num_prefixes * self.most, *states.shape[1:])
        grid[self.cells.to(states.device)] = states
        return grid

    def from_grid(self, states: torch.Tensor) -> torch.Tensor:
        """Undo `to_grid`."""
        return states if self.cells is None else states[self.cells.to(states.device)]


Mask = tuple[int, torch.Tensor | None]


@dataclass(slots=True)
class PrefixGroup:
    """Prefixes in one tensor, and the rows that continue them.

    Attributes:
        keys: By layer, `(prefixes, kv_heads, width, head_dim)`, padded on the right.
        values: Like `keys`.
        lengths: Tokens of each prefix, at most `width`.
        placement: Which of the prefixes each of these rows continues.
        members: Which rows of the batch they are, `(rows,)`; None for all.
    """

    keys: Sequence[torch.Tensor]
    values: Sequence[torch.Tensor]
    lengths: Sequence[int]
    placement: RowPlacement
    members: torch.Tensor | None = None
    _masks: dict[object, Mask] = field(default_factory=dict, init=False)

    def mask(self, window: int | None, num_before: int, num_new: int, device: torch.device) -> Mask:
        """Return the first column that any query sees, and which of the others each one sees.

        Args:
            window: Tokens that a query sees at most, itself included; None for all.
            num_before: Scratch tokens of each row before its queries.
            num_new: Queries of each row.
            device: Of the mask.

        Returns:
            The column, and `(prefixes, 1, 1, num_new, width - column)`, or None if all see all.
        """
        key = (num_new, device) if window is None else (window, num_before, num_new, device)
        if key not in self._masks:
            self._masks[key] = self._build_mask(window, num_before, num_new, device)
        return self._masks[key]

    def _build_mask(
        self, window: int | None, num_before: int, num_new: int, device: torch.device
    ) -> Mask:
        width, start = self.keys[0].shape[2], 0
        if window is not None:
            start = min(max(0, min(self.lengths) + num_before - window + 1), width)
        columns = torch.arange(start, width, device=device)
        mask = None
        if min(self.lengths) < width:
            mask = columns < torch.tensor(self.lengths, device=device)[:, None, None]
        if window is not None and max(self.lengths) + num_before + num_new - window > start:
            lengths = torch.tensor(self.lengths, device=device)[:, None, None]
            steps = torch.arange(num_new, device=device)[:, None] + num_before
            in_window = columns > lengths + steps - window
            mask = in_window if mask is None else mask & in_window
        return start, None if mask is None else mask.expand(-1, num_new, -1)[:, None, None]


@dataclass(frozen=True, slots=True)
class AttentionLayout:
    """What the rows of one forward pass attend to, apart from their new tokens.

    Attributes:
        groups: The prefixes. Rows that continue none are in no group.
        num_before: Scratch tokens of each row before this pass.
    """

    groups: Sequence[PrefixGroup]
    num_before: int = 0

    def scratch_mask(
        self, window: int | None, num_new: int, num_scratch: int, device: torch.device
    ) -> torch.Tensor | None:
        """Return which scratch tokens each query sees, `(num_new, num_scratch)`; None for all.

        Args:
            window: Tokens that a query sees at most, itself included; None for all.
            num_new: Queries of each row, of its last tokens.
            num_scratch: Scratch tokens of each row, the new ones included.
            device: Of the mask.
        """
        windowed = window is not None and num_scratch > window
        if num_new == 1 and not windowed:
            return None
        columns = torch.arange(num_scratch, device=device)
        queries = columns[num_scratch - num_new :, None]
        mask = columns <= queries
        return mask & (columns > queries - window) if window is not None else mask
