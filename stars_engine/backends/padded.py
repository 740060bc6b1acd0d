"""A decoder with one cache for all rows, each copied from its prefix and padded on the left."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import DynamicCache

from stars_engine.backends.decoders import Branches, Decoder, Forward, KeysValues, Prefix


class PaddedDecoder(Decoder):
    """Keeps every prefix's keys and values; only new tokens are read.

    Prefixes of different lengths share a batch by padding on the left, with a mask and explicit
    positions.

    Args:
        model: A causal language model of transformers.
        context_len: Positions it has; None for no limit.
    """

    def __init__(self, model: Any, context_len: int | None = None) -> None:
        self._bytes_per_token = 0
        self._forward = Forward(model)
        self._context_len = context_len

    def start(self, prompts: Sequence[Sequence[int]]) -> list[Prefix]:
        """See `Decoder`."""
        prefixes = [Prefix([], torch.empty(0)) for _ in prompts]
        self.extend(list(zip(prefixes, prompts, strict=True)))
        return prefixes

    def copy(self, prefix: Prefix) -> Prefix:
        """See `Decoder`. Tensors are shared: `extend` replaces them and never writes into them."""
        return replace(prefix, layers=list(prefix.layers))

    def extend(self, kept: Sequence[tuple[Prefix, Sequence[int]]]) -> None:
        """See `Decoder`."""
        by_length: dict[int, list[tuple[Prefix, Sequence[int]]]] = defaultdict(list)
        for prefix, ids in kept:
            by_length[len(ids)].append((prefix, ids))
        for group in by_length.values():
            rows = self._branches([prefix for prefix, _ in group])
            new = torch.tensor([list(ids) for _, ids in group], device=self._forward.device)
            logits = rows.read(new)
            for row, (prefix, new_ids) in enumerate(group):
                prefix.token_ids = [*prefix.token_ids, *new_ids]
                prefix.next_logits = logits[row]
                prefix.layers = rows.row_layers(row, len(prefix.token_ids))
                num_bytes = sum(part.nbytes for layer in prefix.layers for part in layer)
                self._bytes_per_token = num_bytes // len(prefix.token_ids)

    @property
    def bytes_per_token(self) -> int:
        """See `Decoder`."""
        return self._bytes_per_token

    def branch(self, rows: Sequence[Prefix], num_tokens: int) -> Branches:
        """See `Decoder`."""
        return self._branches(rows)

    def _branches(self, rows: Sequence[Prefix]) -> _PaddedBranches:
        return _PaddedBranches(self._forward, rows, self._context_len)


class _PaddedBranches:
    """Rows with a cache of their own, copied from the prefixes.

    A row that has ended runs on beside the others. Beyond the context it stays at the last
    position, and its tokens there are masked out: models count positions by their ids or by the
    mask, and learned positions have no row for more.
    """

    def __init__(
        self, forward: Forward, prefixes: Sequence[Prefix], context_len: int | None = None
    ) -> None:
        self._forward, self._context_len = forward, context_len
        lengths = torch.tensor([len(p.token_ids) for p in prefixes], device=forward.device)
        width = int(lengths.max())
        self._next_position = lengths  # (rows,)
        columns = torch.arange(width, device=forward.device)
        self._mask = (columns >= width - lengths[:, None]).long()  # (rows, width)
        self._cache = DynamicCache()
        for index, _ in enumerate(next((p.layers for p in prefixes if p.layers), [])):
            keys, values = (
                torch.cat([_pad_left(p.layers[index][part], width) for p in prefixes])
                for part in (0, 1)
            )
            self._cache.update(keys, values, index)

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """See `Branches`."""
        return self.read(tokens[:, None])

    def read(self, ids: torch.Tensor) -> torch.Tensor:
        """Append `(rows, count)` ids; return the logits after the last, `(rows, vocab)`."""
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
