"""A decoder with one cache for all rows, each copied from its prefix and padded on the left."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from stars_engine.backends.decoders import Branches, Forward
from stars_engine.backends.states import RowBranches, StateDecoder, StatePrefix
from stars_engine.hidden_states.probes import StepOutput

KeysValues = tuple[torch.Tensor, torch.Tensor]  # each (1, heads, num_tokens, head_dim)


class PaddedDecoder(StateDecoder):
    """Keeps the KV of every prefix; computes only new tokens.

    Prefixes of different lengths share a batch by padding on the left, with a mask and explicit
    positions.

    Args:
        model: A causal language model of transformers.
        context_len: Positions it has; None for no limit.
    """

    def __init__(self, model: Any, context_len: int | None = None) -> None:
        self.forward = Forward(model)
        self._context_len = context_len
        self._bytes_per_token = 0

    def branch(self, prefixes: Sequence[StatePrefix], num_tokens: int) -> Branches:
        """See `Decoder`."""
        return _PaddedBranches(self.forward, prefixes, self._context_len)

    def extend(self, new: Sequence[tuple[StatePrefix, list[int]]]) -> None:
        """See `StateDecoder`."""
        by_length: dict[int, list[tuple[StatePrefix, list[int]]]] = defaultdict(list)
        for prefix, ids in new:
            by_length[len(ids)].append((prefix, ids))
        for group in by_length.values():
            prefixes = [prefix for prefix, _ in group]
            rows = _PaddedBranches(self.forward, prefixes, self._context_len)
            output = rows.read(torch.tensor([ids for _, ids in group], device=self.forward.device))
            for row, (prefix, ids) in enumerate(group):
                prefix.token_ids = [*prefix.token_ids, *ids]
                prefix.last = output.row(row)
                prefix.states = layers = rows.row_layers(row, len(prefix.token_ids))
                num_bytes = sum(part.nbytes for layer in layers for part in layer)
                self._bytes_per_token = num_bytes // len(prefix.token_ids)

    def copy_states(self, states: Any) -> Any:
        """See `StateDecoder`. Tensors are shared: nothing writes into them."""
        return states

    @property
    def bytes_per_token(self) -> int:
        """See `Decoder`."""
        return self._bytes_per_token


class _PaddedBranches(RowBranches):
    """Rows with a cache of their own, copied from the prefixes.

    A row that has ended runs on with the others. Beyond the context it stays at the last
    position, and its tokens there are masked out: models count positions by their ids or by the
    mask, and learned positions have no row for more.
    """

    def __init__(
        self, forward: Forward, prefixes: Sequence[StatePrefix], context_len: int | None = None
    ) -> None:
        self._forward, self._context_len = forward, context_len
        lengths = torch.tensor([len(p.token_ids) for p in prefixes], device=forward.device)
        width = int(lengths.max())
        self._next_position = lengths  # (rows,)
        columns = torch.arange(width, device=forward.device)
        self._mask = (columns >= width - lengths[:, None]).long()  # (rows, width)
        self._cache = DynamicCache()
        for index, _ in enumerate(next((p.states for p in prefixes if p.states), [])):
            keys, values = (
                torch.cat([_pad_left(p.states[index][part], width) for p in prefixes])
                for part in (0, 1)
            )
            self._cache.update(keys, values, index)

    def append(self, tokens: torch.Tensor) -> StepOutput:
        """See `RowBranches`."""
        return self.read(tokens[:, None])

    def read(self, ids: torch.Tensor) -> StepOutput:
        """Append `(rows, count)` ids; return the output after the last."""
        rows, count = ids.shape
        steps = torch.arange(count, device=ids.device)
        positions = self._next_position[:, None] + steps
        self._next_position = self._next_position + count
        new_mask = self._mask.new_ones(rows, count)
        if self._context_len is not None:
            new_mask = (positions < self._context_len).long()
            positions = positions.clamp(max=self._context_len - 1)
        self._mask = torch.cat([self._mask, new_mask], dim=1)
        return self._forward(ids, self._mask, positions, self._cache)

    def row_layers(self, row: int, length: int) -> list[KeysValues]:
        """Copy out the last `length` columns of one row."""
        layers: list[Any] = self._cache.layers
        return [
            (
                layer.keys[row : row + 1, :, -length:].clone(),
                layer.values[row : row + 1, :, -length:].clone(),
            )
            for layer in layers
        ]


def _pad_left(states: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(states, (0, 0, width - states.shape[-2], 0))
