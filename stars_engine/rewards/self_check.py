"""Which way a reward model reads texts: only what is new of them, or whole."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from stars_engine.kv_cache.self_check import ROUNDING, window_of
from stars_engine.memory import in_smaller_batches, make_room
from stars_engine.rewards.batch_invariance import Sharing
from stars_engine.rewards.batching import CallAt, ReadWhole, in_batches
from stars_engine.rewards.cached_prefixes import Ids
from stars_engine.rewards.encoding import Row
from stars_engine.rewards.incremental import IncrementalReader

logger = logging.getLogger(__name__)


class KeepsRead:
    """A reward model that keeps what it has read, if its reader does; see `KeepsCache`."""

    _incremental: IncrementalReader | None

    @property
    def bytes_per_token(self) -> int:
        """Memory of what is kept of one token."""
        return 0 if self._incremental is None else self._incremental.bytes_per_token

    def limit_cache(self, max_bytes: int | None) -> None:
        """Bound what is kept."""
        if self._incremental is not None:
            self._incremental.limit_cache(max_bytes)

    def drop_unused(self) -> None:
        """Let go of what is kept."""
        if self._incremental is not None:
            self._incremental.drop_unused()

    def look_at_weights(self) -> None:
        """Forget what was read with other weights."""
        if self._incremental is not None:
            self._incremental.look_at_weights()


def read_rows(
    reader: IncrementalReader | None,
    rows: Sequence[Row],
    plain: ReadWhole,
    *,
    batch_size: int,
    sharing: Sharing,
) -> list[torch.Tensor]:
    """Return what comes of each row's points, `(points, ...)`, by a reader or plainly.

    Args:
        reader: Reads only what is new; None: every row is read whole.
        rows: The rows.
        plain: Reads some rows whole, as one batch.
        batch_size: Rows of a batch at most.
        sharing: Which rows may share a batch.
    """

    def run(some: Sequence[Row]) -> list[torch.Tensor]:
        if reader is not None:
            return reader.read(some)
        return in_batches(some, [len(row.ids) for row in some], batch_size, plain, sharing)

    return in_smaller_batches(run, rows, what="texts", make_room=lambda _: make_room(reader))


def choose_reader(
    model: Any,
    call: CallAt,
    plain: ReadWhole,
    *,
    context_len: int | None,
    batch_size: int,
    sharing: Sharing,
    head: torch.nn.Module | None = None,
) -> tuple[IncrementalReader | None, str]:
    """Return a reader, if what it finds is what plain passes find, and how texts are read.

    Args:
        model: A causal model of transformers.
        call: One pass through it, with a cache.
        plain: Reads rows whole, as one batch; returns what comes of their points.
        context_len: Positions it has; None for no limit.
        batch_size: Rows of a pass at most.
        sharing: Which rows may share a pass.
        head: What the call has beside the model, if anything.
    """
    if sharing is not Sharing.ANY:
        return None, "whole texts (it scores a text by what is beside it)"

    reader = IncrementalReader(model, call, context_len, batch_size=batch_size, head=head)
    problem = _find_problem(reader, plain, model, context_len)
    if problem is not None:
        logger.warning("%s reads texts whole, which is slower: %s", type(model).__name__, problem)
        return None, f"whole texts ({problem})"
    reader.drop_unused()  # the check's own; what it has shown of sizes stays
    reader.num_fed = reader.num_prefills = 0
    return reader, "new tokens only"


@torch.inference_mode()
def _find_problem(
    reader: IncrementalReader, plain: ReadWhole, model: Any, context_len: int | None
) -> str | None:
    """Compare with plain passes on random ids; return what is wrong."""
    generator = torch.Generator().manual_seed(0)
    size = 12 + window_of(model)
    if context_len is not None:
        size = min(size, context_len - 12)
    if size < 1:
        return "its context is too short to check"
    vocab_size = model.get_input_embeddings().weight.shape[0]

    def random_ids(count: int) -> Ids:
        ids: Ids = torch.randint(vocab_size, (count,), generator=generator).tolist()
        return ids

    def grown(ids: Ids, marks: tuple[int, ...], count: int) -> Row:
        end = len(ids) + count - 1
        return Row([*ids, *random_ids(count)], (*marks, end - 1, end))

    kept: list[tuple[Ids, tuple[int, ...]]]
    kept = [(random_ids(length), (length // 2,)) for length in (size, size - size // 4)]
    try:
        for _ in range(3):
            rows = [grown(*each, count) for each in kept for count in (4, 3, 4)]
            ours = torch.cat(reader.read(rows)).float()
            plainly = torch.cat([found for row in rows for found in plain([row])]).float()
            difference = (ours - plainly).abs().max().item()
            scale = plainly.abs().max().item()
            if not difference <= ROUNDING.get(model.dtype, 6e-2) * max(scale, 0.1):
                return f"values differed by {difference:.2g} of {scale:.2g}"
            # The last point of one stays, that of the other moves.
            kept = [(rows[1].ids, rows[1].marks), (rows[5].ids[:-1], rows[5].marks[:-1])]
    except Exception as error:  # noqa: BLE001 - architectures fail in ways of their own
        return f"{type(error).__name__}: {error}"
    return None
