"""A decoder for models with recurrent states: every prefix has a cache, forked for its candidates.

Such states cannot be padded or shared, so each prefix's rows are a batch of their own. Accepted
tokens are computed one by one: some architectures get several at once after a cache wrong.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache, DynamicCache

from stars_engine.backends.decoders import Branches, Forward
from stars_engine.backends.states import RowBranches, StateDecoder, StatePrefix
from stars_engine.hidden_states.probes import StepOutput


class ForkingDecoder(StateDecoder):
    """Keeps a transformers cache for each prefix.

    Args:
        model: A causal language model of transformers.
        context_len: Positions it has; None for no limit.
    """

    def __init__(self, model: Any, context_len: int | None = None) -> None:
        self.forward = Forward(model)
        self._context_len = context_len

    def branch(self, prefixes: Sequence[StatePrefix], num_tokens: int) -> Branches:
        """See `Decoder`."""
        groups: dict[StatePrefix, list[int]] = {}
        for row, prefix in enumerate(prefixes):
            groups.setdefault(prefix, []).append(row)
        return _ForkedBranches(self, groups)

    def fork(self, prefix: StatePrefix, count: int) -> Cache:
        """Return a cache of that many rows, each with the prefix's states."""
        forked: Any = copy.deepcopy(prefix.states)
        forked.reorder_cache(torch.zeros(count, dtype=torch.long, device=self.forward.device))
        return forked  # type: ignore[no-any-return]

    def read(self, tokens: torch.Tensor, position: int, cache: Cache) -> StepOutput:
        """Append one token to each row, `(rows,)`; return the output after it."""
        return self.forward(tokens[:, None], positions=self._position(position), cache=cache)

    def extend(self, new: Sequence[tuple[StatePrefix, list[int]]]) -> None:
        """See `StateDecoder`."""
        for prefix, ids in new:
            if prefix.states is None:
                prefix.states = DynamicCache(config=self.forward.config.get_text_config())
                tokens = torch.tensor([ids], device=self.forward.device)
                prefix.last = self.forward(tokens, cache=prefix.states).row(0)
                prefix.token_ids = ids
                continue
            for token in ids:
                tokens = torch.tensor([token], device=self.forward.device)
                prefix.last = self.read(tokens, len(prefix.token_ids), prefix.states).row(0)
                prefix.token_ids = [*prefix.token_ids, token]

    def copy_states(self, states: Any) -> Any:
        """See `StateDecoder`."""
        return copy.deepcopy(states)

    def _position(self, position: int) -> torch.Tensor:
        """A row that has ended runs on at the last position of the context."""
        if self._context_len is not None:
            position = min(position, self._context_len - 1)
        return torch.tensor([[position]], device=self.forward.device)


class _ForkedBranches(RowBranches):
    def __init__(self, decoder: ForkingDecoder, groups: dict[StatePrefix, list[int]]) -> None:
        self._decoder = decoder
        self._groups = [
            (rows, len(prefix.token_ids), decoder.fork(prefix, len(rows)))
            for prefix, rows in groups.items()
        ]
        self._num_read = 0

    def append(self, tokens: torch.Tensor) -> StepOutput:
        """See `RowBranches`."""
        outputs: dict[int, StepOutput] = {}
        for rows, length, cache in self._groups:
            found = self._decoder.read(tokens[rows], length + self._num_read, cache)
            outputs |= {row: found.row(index) for index, row in enumerate(rows)}
        self._num_read += 1
        return StepOutput.stack([outputs[row] for row in range(len(tokens))])
