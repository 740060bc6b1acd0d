"""A decoder without KV, for models whose states cannot be branched off."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from stars_engine.backends.decoders import Branches, Forward
from stars_engine.backends.states import RowBranches, StateDecoder, StatePrefix
from stars_engine.hidden_states.probes import StepOutput


class UncachedDecoder(StateDecoder):
    """Computes each row whole at each step. Only the outputs after prefixes are kept.

    Rows of one length share a batch, so nothing is padded.

    Args:
        model: A causal language model of transformers.
        context_len: Tokens it reads at most; None for no limit. A row that has ended runs on
            with the others only so far.
    """

    def __init__(self, model: Any, context_len: int | None = None) -> None:
        self.forward = Forward(model)
        self.context_len = context_len

    def branch(self, prefixes: Sequence[StatePrefix], num_tokens: int) -> Branches:
        """See `Decoder`."""
        return _UncachedBranches(self, [list(prefix.token_ids) for prefix in prefixes])

    def read(self, rows: Sequence[list[int]]) -> StepOutput:
        """Return the output after each whole row."""
        by_length: dict[int, list[int]] = defaultdict(list)
        for index, row in enumerate(rows):
            by_length[len(row)].append(index)
        outputs: dict[int, StepOutput] = {}
        for indices in by_length.values():
            ids = torch.tensor([rows[index] for index in indices], device=self.forward.device)
            found = self.forward(ids)
            outputs |= {row: found.row(index) for index, row in enumerate(indices)}
        return StepOutput.stack([outputs[index] for index in range(len(rows))])

    def extend(self, new: Sequence[tuple[StatePrefix, list[int]]]) -> None:
        """See `StateDecoder`."""
        output = self.read([[*prefix.token_ids, *ids] for prefix, ids in new])
        for row, (prefix, ids) in enumerate(new):
            prefix.token_ids = [*prefix.token_ids, *ids]
            prefix.last = output.row(row)

    def copy_states(self, states: Any) -> Any:
        """See `StateDecoder`. There are none."""
        return states


class _UncachedBranches(RowBranches):
    def __init__(self, decoder: UncachedDecoder, rows: list[list[int]]) -> None:
        self._decoder, self._rows = decoder, rows

    def append(self, tokens: torch.Tensor) -> StepOutput:
        """See `RowBranches`."""
        limit = self._decoder.context_len
        for row, token in zip(self._rows, tokens.tolist(), strict=True):
            if limit is None or len(row) < limit:
                row.append(token)
        return self._decoder.read(self._rows)
