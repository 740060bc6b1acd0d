"""A decoder that keeps nothing, for models whose state cannot be branched off."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from stars_engine.backends.decoders import Branches, Decoder, Forward, Prefix


class UncachedDecoder(Decoder):
    """Keeps nothing: reads each row whole at each step. For models without a KV cache of ours.

    Rows of one length share a batch, so nothing is padded.

    Args:
        model: A causal language model of transformers.
        context_len: Tokens it reads at most; None for no limit. A row that has ended runs on beside
            the others only so far.
    """

    def __init__(self, model: Any, context_len: int | None = None) -> None:
        self._forward = Forward(model)
        self.context_len = context_len

    def start(self, prompts: Sequence[Sequence[int]]) -> list[Prefix]:
        """See `Decoder`."""
        logits = self.read([list(prompt) for prompt in prompts])
        return [Prefix(list(prompt), logits[row]) for row, prompt in enumerate(prompts)]

    def copy(self, prefix: Prefix) -> Prefix:
        """See `Decoder`."""
        return replace(prefix)

    def extend(self, kept: Sequence[tuple[Prefix, Sequence[int]]]) -> None:
        """See `Decoder`."""
        logits = self.read([[*prefix.token_ids, *ids] for prefix, ids in kept])
        for row, (prefix, ids) in enumerate(kept):
            prefix.token_ids = [*prefix.token_ids, *ids]
            prefix.next_logits = logits[row]

    def branch(self, rows: Sequence[Prefix], num_tokens: int) -> Branches:
        """See `Decoder`."""
        return _UncachedBranches(self, [list(prefix.token_ids) for prefix in rows])

    def read(self, rows: Sequence[list[int]]) -> torch.Tensor:
        """Return the logits after each whole row, `(rows, vocab)`."""
        by_length: dict[int, list[int]] = defaultdict(list)
        for index, row in enumerate(rows):
            by_length[len(row)].append(index)
        logits: dict[int, torch.Tensor] = {}
        for indices in by_length.values():
            ids = torch.tensor([rows[index] for index in indices], device=self._forward.device)
            logits |= zip(indices, self._forward(ids), strict=True)
        return torch.stack([logits[index] for index in range(len(rows))])


class _UncachedBranches:
    def __init__(self, decoder: UncachedDecoder, rows: list[list[int]]) -> None:
        self._decoder, self._rows = decoder, rows

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        limit = self._decoder.context_len
        for row, token in zip(self._rows, tokens.tolist(), strict=True):
            if limit is None or len(row) < limit:
                row.append(token)
        return self._decoder.read(self._rows)
