"""Rows that continue prefixes in slots, and passes of a model over them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch

from stars_engine.kv_cache.attention import attending, name_for
from stars_engine.kv_cache.layout import Prefixes, Rows, View
from stars_engine.kv_cache.packed_linear import PackedLinears
from stars_engine.kv_cache.pool import ByLayer, Slot, SlotPool
from stars_engine.kv_cache.scratch import OwnTokens
from stars_engine.kv_cache.weight_fingerprint import Change, Watch


class _Turn:
    """Whose pass through a model it is."""

    def __init__(self) -> None:
        self.lock = threading.RLock()


_turns: weakref.WeakValueDictionary[int, _Turn] = weakref.WeakValueDictionary()  # by config
_making = threading.Lock()


class ReadingRows(Protocol):
    """Rows that read on."""

    @property
    def own(self) -> OwnTokens:
        """What they have read."""
        ...

    def positions(self, count: int) -> torch.Tensor:
        """Return `(rows, count)`, of the next tokens."""
        ...

    def view(self) -> View:
        """Return what the next tokens attend to."""
        ...

    def states(self, row: int, count: int) -> tuple[ByLayer, ByLayer]:
        """Return the keys and values of a row's first own tokens, by layer."""
        ...


class SharingPass:
    """Runs a model with our attention in place of its own.

    Its configs name the attention during a pass and are set back after it, since the model may be
    somebody else's too. Passes of ours through one model wait for each other.

    Args:
        model: Of transformers.
        call: Has it read `(rows, count)` ids at `(rows, count)` positions with a cache.
        context_len: Positions it has; None for no limit.
        head: What the call has beside the model, if anything; its weights count too.
    """

    def __init__(
        self,
        model: Any,
        call: Callable[..., Any],
        context_len: int | None,
        head: torch.nn.Module | None = None,
    ) -> None:
        self._call = call
        self._context_len = context_len
        self._embedding = model.get_input_embeddings()
        configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
        self._configs = [
            config
            for config in configs.values()
            if hasattr(config, "_attn_implementation_internal")
        ]
        self._model = model
        self._watch = Watch([model] if head is None else [model, head])
        self._packed = PackedLinears(model)
        with _making:
            self._turn = _turns.setdefault(id(model.config), _Turn())
        self.turn = self._turn.lock

    @property
    def device(self) -> torch.device:
        """Where tokens go: where the model is now."""
        device: torch.device = self._embedding.weight.device
        return device

    def __call__(
        self, rows: ReadingRows, ids: Sequence[Sequence[int]] | torch.Tensor, **options: Any
    ) -> Any:
        """Have each row read more tokens, equally many; return what the call returns."""
        ids = torch.as_tensor(ids, device=self.device)
        positions = rows.positions(ids.shape[1])
        if self._context_len is not None:  # rows that have ended run on beside the others
            positions = positions.clamp(max=self._context_len - 1)
        with self.turn, self._own_attention(), self._packed(), attending(rows.view()):
            output = self._call(ids, positions, rows.own, **options)
        rows.own.num_tokens += ids.shape[1]
        return output

    @contextmanager
    def _own_attention(self) -> Iterator[None]:
        # The internal attribute: the public setter looks through all modules each time.
        names = [config._attn_implementation_internal for config in self._configs]  # noqa: SLF001
        try:
            for config, name in zip(self._configs, names, strict=True):
                config._attn_implementation_internal = name_for(name)  # noqa: SLF001
            yield
        finally:
            for config, name in zip(self._configs, names, strict=True):
                config._attn_implementation_internal = name  # noqa: SLF001

    def change(self, *, thoroughly: bool) -> Change:
        """Return what has become of the weights since the last call; see `Watch.change`."""
        change = self._watch.change(thoroughly=thoroughly)
        if change is not Change.NONE:
            self._packed = PackedLinears(self._model)
        return change


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
        slots: Sequence[Slot],
        lengths: Sequence[int],
        num_tokens: int,
        device: torch.device,
    ) -> None:
        self.own = OwnTokens(len(slots), num_tokens)
        self._starts = torch.tensor(lengths, device=device)[:, None]
        by_slot = {slot: length for slot, length in zip(slots, lengths, strict=True) if length > 0}
        self._view = View(_side_by_side(pool, slots, by_slot, device))

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


def _side_by_side(
    pool: SlotPool, slots: Sequence[Slot], lengths: Mapping[Slot, int], device: torch.device
) -> list[Prefixes]:
    """Return what rows attend to, by the tensors in which their prefixes stand.

    Args:
        pool: Of the slots.
        slots: Of each row.
        lengths: Of each prefix that is not empty.
        device: Of the model.
    """
    if not lengths:
        return []
    distinct = list(lengths)
    found = []
    for order, keys, values in pool.side_by_side(distinct, list(lengths.values())):
        places = {distinct[index]: place for place, index in enumerate(order)}
        members = [row for row, slot in enumerate(slots) if slot in places]
        rows = Rows.of([places[slots[row]] for row in members], device)
        chosen = None if len(members) == len(slots) else torch.tensor(members, device=device)
        within = [lengths[distinct[index]] for index in order]
        found.append(Prefixes(keys, values, within, rows, chosen))
    return found
