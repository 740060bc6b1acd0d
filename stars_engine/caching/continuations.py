"""Rows that continue prefixes in slots, and passes of a model over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch

from stars_engine.caching.attention import NAME, Rows, View, attending
from stars_engine.caching.slots import ByLayer, OwnTokens, SlotPool

Output = TypeVar("Output")

Call = Callable[..., Output]


class SharingPass:
    """Runs a model with our attention in place of its own.

    Its configs name the attention; they are set back after each pass, since the model may be
    somebody else's too.

    Args:
        model: Of transformers.
        call: Has it read `(rows, count)` ids at `(rows, count)` positions with a cache.
        context_len: Positions it has; None for no limit.
    """

    def __init__(self, model: Any, call: Call[Output], context_len: int | None) -> None:
        self._call = call
        self._context_len = context_len
        self.device: torch.device = model.get_input_embeddings().weight.device
        configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
        self._configs = [
            config
            for config in configs.values()
            if hasattr(config, "_attn_implementation_internal")
        ]

    def __call__(
        self, rows: Continuations, ids: Sequence[Sequence[int]] | torch.Tensor, **options: Any
    ) -> Any:
        """Have each row read more tokens, equally many; return what the call returns."""
        ids = torch.as_tensor(ids, device=self.device)
        positions = rows.positions(ids.shape[1])
        if self._context_len is not None:  # rows that have ended run on beside the others
            positions = positions.clamp(max=self._context_len - 1)
        names = [config._attn_implementation_internal for config in self._configs]  # noqa: SLF001
        try:
            for config in self._configs:
                config._attn_implementation_internal = NAME  # noqa: SLF001 - quicker than the setter
            with attending(rows.view()):
                output = self._call(ids, positions, rows.own, **options)
        finally:
            for config, name in zip(self._configs, names, strict=True):
                config._attn_implementation_internal = name  # noqa: SLF001
        rows.own.num_tokens += ids.shape[1]
        return output


class Continuations:
    """Rows of own tokens that continue prefixes.

    Args:
        pool: Where the prefixes are.
        slots: Of each row's prefix.
        lengths: Tokens of each row's prefix that it goes on from.
        num_tokens: Own tokens of each row at most.
        device: Of the model.
    """

    def __init__(
        self,
        pool: SlotPool,
        slots: Sequence[int],
        lengths: Sequence[int],
        num_tokens: int,
        device: torch.device,
    ) -> None:
        self.own = OwnTokens(len(slots), num_tokens)
        self._starts = torch.tensor(lengths, device=device)[:, None]
        by_slot = dict(zip(slots, lengths, strict=True))
        distinct = sorted(by_slot)
        width = max(lengths)
        keys, values = pool.read(distinct, width) if width else ([], [])
        rows = Rows.of([distinct.index(slot) for slot in slots], device)
        self._view = View(keys, values, [by_slot[slot] for slot in distinct], rows)

    def positions(self, count: int) -> torch.Tensor:
        """Return `(rows, count)`, of the next tokens."""
        before = self.own.num_tokens
        return self._starts + torch.arange(before, before + count, device=self._starts.device)

    def view(self) -> View:
        """Return what the next tokens attend to."""
        return replace(self._view, num_before=self.own.num_tokens)

    def states(self, row: int, count: int) -> tuple[ByLayer, ByLayer]:
        """Return the keys and values of a row's first own tokens, by layer."""
        return self.own.first(row, count)
