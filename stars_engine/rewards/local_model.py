"""What all reward models share that compute rows of tokens in this process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

import torch

from stars_engine.config.rewards.common import ModelReward
from stars_engine.loading.models import load_tokenizer
from stars_engine.out_of_memory import free_unused, in_smaller_batches
from stars_engine.rewards.aggregation import aggregate
from stars_engine.rewards.batch_invariance import PROBES, Sharing, find_sharing
from stars_engine.rewards.batching import CallAt, in_batches, run_whole
from stars_engine.rewards.encoding import EncodedInput, InputReader
from stars_engine.rewards.failures import FailurePolicy
from stars_engine.rewards.incremental import IncrementalRunner
from stars_engine.rewards.self_check import select_runner
from stars_engine.tokenization.codec import Codec
from stars_engine.types import Score

Value = TypeVar("Value")


class LocalRewardModel:
    """A reward model of transformers; it caches prefixes if it runs incrementally.

    Constructors of subclasses set the other attributes. See `KeepsCache` for the methods of the
    cache.

    Args:
        config: What to load, or the live objects.

    Attributes:
        name: The name of the reward, for messages.
        path: How texts are computed, for descriptions.
    """

    path: str
    _model: Any
    _device: torch.device
    _call: CallAt
    _reader: InputReader
    _sharing: Sharing
    _incremental: IncrementalRunner | None

    def __init__(self, config: ModelReward) -> None:
        self._config: Any = config
        self._tokenizer = load_tokenizer(config)
        self._codec = Codec(self._tokenizer)
        self.failures = FailurePolicy.of(config)
        self.name = config.name_or_path or type(config.model).__name__

    def about(self) -> dict[str, str]:
        """Return a readable description."""
        return {
            "class": f"{type(self._model).__name__}, {self._model.num_parameters():,} parameters",
            "placement": f"{self._model.device}, {self._model.dtype}",
            "context": f"{self._reader.max_tokens or 'unlimited'} tokens",
            "reads": self._reader.about,
            "path": self.path,
        }

    def _aggregated(self, found: Sequence[tuple[Sequence[float], EncodedInput]]) -> list[Score]:
        """Return the score of each row, from the values at its points."""
        config = self._config
        return [
            row.score(aggregate(values, config.aggregate, config.half_life), config.floor)
            for values, row in found
        ]

    # --- the forward pass ---

    def _choose_path(self, head: torch.nn.Module | None = None) -> None:
        """Run incrementally if a self-check agrees; see `select_runner`."""
        self._incremental, self.path = select_runner(
            self._model,
            self._call,
            self._run_whole,
            context_len=self._reader.max_tokens,
            batch_size=self._config.batch_size,
            sharing=self._sharing,
            head=head,
        )

    def _outputs(self, rows: Sequence[EncodedInput]) -> torch.Tensor:
        """Return the outputs at the points of all rows, `(points, ...)`; compute only new tokens.

        Whole rows are computed where the model does not run incrementally.
        """
        runner = self._incremental

        def run(some: Sequence[EncodedInput]) -> list[torch.Tensor]:
            if runner is not None:
                return runner.run(some)
            lengths, size = [len(row.ids) for row in some], self._config.batch_size
            return in_batches(some, lengths, size, self._run_whole, self._sharing)

        def free(_: int) -> None:
            free_unused(runner and runner.cache)

        return torch.cat(in_smaller_batches(run, rows, what="texts", free_unused=free))

    def _run_whole(self, rows: Sequence[EncodedInput]) -> list[torch.Tensor]:
        """Return `(points, outputs)` of each row, computed as one batch."""
        return run_whole(self._call, rows, self._tokenizer.pad_token_id or 0, self._device)

    def _outputs_at_end(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Return `(rows, outputs)` at the last token of each row."""
        return torch.cat(self._run_whole([EncodedInput(list(row)) for row in rows]))

    @torch.inference_mode()
    def _find_sharing(self, suffix_ids: Sequence[int] = ()) -> Sharing:
        """Find out which rows may share a batch, with texts that end with a suffix."""
        short, long = ([*self._codec.encode_prompt(text), *suffix_ids] for text in PROBES)
        return find_sharing(
            self._outputs_at_end, short, long, name=self.name, dtype=self._model.dtype
        )

    # --- the cache ---

    @property
    def bytes_per_token(self) -> int:
        """Bytes of memory per cached token."""
        return 0 if self._incremental is None else self._incremental.cache.bytes_per_token

    def limit_cache(self, max_bytes: int | None) -> None:
        """Bound the memory of the cache."""
        if self._incremental is not None:
            self._incremental.cache.limit_cache(max_bytes)

    def free_unused(self) -> None:
        """Free the cache; nothing is pinned between calls."""
        if self._incremental is not None:
            self._incremental.cache.free_unused()

    def memory_usage(self) -> Mapping[str, int]:
        """See `ReportsMemory`."""
        return {} if self._incremental is None else self._incremental.memory_usage()

    def invalidate_if_changed(self) -> None:
        """Drop cached values that were computed with other weights."""
        if self._incremental is not None:
            self._incremental.cache.invalidate_if_changed()


def by_row(
    values: Iterable[Value], rows: Sequence[EncodedInput]
) -> list[tuple[list[Value], EncodedInput]]:
    """Return the values at the points of each row, with the row."""
    left = iter(values)
    return [(list(islice(left, len(row.points))), row) for row in rows]
