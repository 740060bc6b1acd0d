"""Rows that continue prefixes in slots, and passes of a model over them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from stars_engine.caching.attention import Rows, View, attending, name_for
from stars_engine.caching.slots import ByLayer, OwnTokens, SlotPool


class _Turn:
    """Whose pass through a model it is."""

    def __init__(self) -> None:
        self.lock = threading.RLock()


_turns: weakref.WeakValueDictionary[int, _Turn] = weakref.WeakValueDictionary()  # by config
_making = threading.Lock()


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
        self.device: torch.device = model.get_input_embeddings().weight.device
        configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
        self._configs = [
            config
            for config in configs.values()
            if hasattr(config, "_attn_implementation_internal")
        ]
        self._parameters = [*model.parameters(), *(head.parameters() if head is not None else ())]
        self._adapters = [m for m in model.modules() if hasattr(m, "_disable_adapters")]
        with _making:
            self._turn = _turns.setdefault(id(model.config), _Turn())

    def __call__(
        self, rows: Continuations, ids: Sequence[Sequence[int]] | torch.Tensor, **options: Any
    ) -> Any:
        """Have each row read more tokens, equally many; return what the call returns."""
        ids = torch.as_tensor(ids, device=self.device)
        positions = rows.positions(ids.shape[1])
        if self._context_len is not None:  # rows that have ended run on beside the others
            positions = positions.clamp(max=self._context_len - 1)
        with self._turn.lock, self._own_attention(), attending(rows.view()):
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

    def stamp(self) -> tuple[object, ...]:
        """Return what changes when the weights do: trained, loaded, moved, adapters switched."""
        weights = [
            (p.data_ptr(), 0 if p.is_inference() else p._version)  # noqa: SLF001
            for p in self._parameters
        ]
        adapters = [(m._disable_adapters, str(m._active_adapter)) for m in self._adapters]  # noqa: SLF001
        return (*weights, *adapters)


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
