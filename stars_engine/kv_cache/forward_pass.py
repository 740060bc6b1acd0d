"""Forward passes of a model over rows that continue cached prefixes."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch

from stars_engine.kv_cache.attention import attending, name_for
from stars_engine.kv_cache.cache_entry import CachedPrefix
from stars_engine.kv_cache.layout import AttentionLayout, PrefixGroup, RowPlacement
from stars_engine.kv_cache.packed_linear import PackedLinears
from stars_engine.kv_cache.pool import SlotPool
from stars_engine.kv_cache.scratch import ScratchKV
from stars_engine.kv_cache.weight_fingerprint import WeightFingerprint


class ModelLock:
    """Held during a pass: a model's config names our attention meanwhile."""

    def __init__(self) -> None:
        self.lock = threading.RLock()


# By config: engines may share a model.
_locks: weakref.WeakValueDictionary[int, ModelLock] = weakref.WeakValueDictionary()
_making = threading.Lock()


def lock_of(model: Any) -> ModelLock:
    """Return the lock of a model's passes. It exists as long as someone holds it."""
    with _making:
        return _locks.setdefault(id(model.config), ModelLock())


class ScratchRows(Protocol):
    """Rows that continue prefixes, and their scratch KV."""

    @property
    def kv(self) -> ScratchKV:
        """Keys and values of their tokens."""

    def positions(self, count: int) -> torch.Tensor:
        """Return the positions of the next tokens, `(rows, count)`."""

    def layout(self) -> AttentionLayout:
        """Return what the next tokens attend to."""


class ModelRunner:
    """Runs a model with shared-prefix attention in place of its own.

    The model's configs name the attention during a pass and are restored after it, since others may
    use the model, too. Our passes through one model wait for each other.

    Args:
        model: A transformers model.
        call: Calls it with `(rows, count)` ids, `(rows, count)` positions and a cache.
        context_len: Positions it has; None for no limit.
        head: What the call uses apart from the model, if anything; its weights count too.
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
        self._fingerprint = WeightFingerprint([model] if head is None else [model, head])
        self._packed = PackedLinears(model)
        self._lock = lock_of(model)
        self.lock = self._lock.lock

    @property
    def packed_bytes(self) -> int:
        """Memory of packed weights."""
        return self._packed.num_bytes

    @property
    def device(self) -> torch.device:
        """Where tokens go: the device of the model now."""
        device: torch.device = self._embedding.weight.device
        return device

    def __call__(
        self, rows: ScratchRows, ids: Sequence[Sequence[int]] | torch.Tensor, **options: Any
    ) -> Any:
        """Append `(rows, count)` tokens to rows; return what the call returns."""
        ids = torch.as_tensor(ids, device=self.device)
        positions = rows.positions(ids.shape[1])
        if self._context_len is not None:  # rows that have ended run on with the others
            positions = positions.clamp(max=self._context_len - 1)
        with self.lock, self._shared_prefix_attention(), self._packed(), attending(rows.layout()):
            output = self._call(ids, positions, rows.kv, **options)
        rows.kv.num_tokens += ids.shape[1]
        return output

    @contextmanager
    def _shared_prefix_attention(self) -> Iterator[None]:
        # The internal attribute: the public setter looks through all modules each time.
        names = [config._attn_implementation_internal for config in self._configs]  # noqa: SLF001
        try:
            for config, name in zip(self._configs, names, strict=True):
                config._attn_implementation_internal = name_for(name)  # noqa: SLF001
            yield
        finally:
            for config, name in zip(self._configs, names, strict=True):
                config._attn_implementation_internal = name  # noqa: SLF001

    def weights_changed(self, *, thorough: bool) -> bool:
        """Return whether weights have changed; see `WeightFingerprint.has_changed`."""
        changed = self._fingerprint.has_changed(thorough=thorough)
        if changed:
            self._packed = PackedLinears(self._model)
        return changed

    def extend(
        self,
        prefixes: Sequence[CachedPrefix],
        ids: Sequence[list[int]],
        pool: SlotPool,
        **options: Any,
    ) -> Any:
        """Compute equally many tokens of each prefix and store their KV."""
        rows = EagerRows(pool, prefixes, len(ids[0]), self.device)
        output = self(rows, ids, **options)
        for index, (prefix, new) in enumerate(zip(prefixes, ids, strict=True)):
            pool.write(prefix, *rows.kv.first(index, len(new)), new)
        return output


class EagerRows:
    """Rows of any number and length, run kernel by kernel.

    Args:
        pool: Where the prefixes are.
        prefixes: The prefix of each row; repeats are separate rows.
        num_tokens: Maximum tokens of each row.
        device: Of the model.
    """

    def __init__(
        self,
        pool: SlotPool,
        prefixes: Sequence[CachedPrefix],
        num_tokens: int,
        device: torch.device,
    ) -> None:
        self.kv = ScratchKV(len(prefixes), num_tokens)
        lengths = [len(prefix.token_ids) for prefix in prefixes]
        self._starts = torch.tensor(lengths, device=device)[:, None]
        by_prefix = {prefix: n for prefix, n in zip(prefixes, lengths, strict=True) if n > 0}
        self._layout = AttentionLayout(_groups(pool, prefixes, by_prefix, device))

    def positions(self, count: int) -> torch.Tensor:
        """Return the positions of the next tokens, `(rows, count)`."""
        before = self.kv.num_tokens
        return self._starts + torch.arange(before, before + count, device=self._starts.device)

    def layout(self) -> AttentionLayout:
        """Return what the next tokens attend to."""
        return replace(self._layout, num_before=self.kv.num_tokens)


def _groups(
    pool: SlotPool,
    prefixes: Sequence[CachedPrefix],
    lengths: Mapping[CachedPrefix, int],
    device: torch.device,
) -> list[PrefixGroup]:
    """Return the prefixes that rows attend to, by the tensors that hold them.

    Args:
        pool: Of the prefixes.
        prefixes: Of each row.
        lengths: Of each prefix that is not empty.
        device: Of the model.
    """
    if not lengths:
        return []
    distinct = list(lengths)
    found = []
    for order, keys, values in pool.group(distinct, list(lengths.values())):
        ranks = {distinct[index]: rank for rank, index in enumerate(order)}
        members = [row for row, prefix in enumerate(prefixes) if prefix in ranks]
        placement = RowPlacement.of([ranks[prefixes[row]] for row in members], device)
        chosen = None if len(members) == len(prefixes) else torch.tensor(members, device=device)
        within = [lengths[distinct[index]] for index in order]
        found.append(PrefixGroup(keys, values, within, placement, chosen))
    return found
