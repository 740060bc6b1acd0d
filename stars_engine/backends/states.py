"""Decoders that keep each prefix's states with its holder, and nothing of texts that have ended."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from stars_engine.backends.decoders import Branches, Decoder, Forward
from stars_engine.hidden_states.probes import ProbeSet, StepOutput
from stars_engine.kv_cache.grouping import first_equal


class StatePrefix:
    """A prefix and what its decoder keeps of it.

    Attributes:
        token_ids: The tokens.
        probes: The probes of the decoder when it was computed.
        states: Whatever the decoder needs to continue them; None before anything is computed.
        last: The output after the last token, of one row.
    """

    def __init__(self, decoder: StateDecoder) -> None:
        self.decoder, self.probes = decoder, decoder.forward.probes
        self.token_ids: list[int] = []
        self.states: Any = None
        self.last = StepOutput(torch.empty(0))

    @property
    def last_output(self) -> torch.Tensor:
        """See `ComputedPrefix`."""
        return self.last.logits

    @property
    def last_features(self) -> torch.Tensor | None:
        """See `ComputedPrefix`."""
        return self.last.features


class RowBranches(Branches):
    """Rows that are computed anew if one is accepted: nothing of them is kept."""

    _last = StepOutput(torch.empty(0))

    @abstractmethod
    def append(self, tokens: torch.Tensor) -> StepOutput:
        """Append one token to each row, `(rows,)`; return the output after it."""

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """See `Branches`."""
        self._last = self.append(tokens)
        return self._last.logits

    @property
    def features(self) -> torch.Tensor | None:
        """See `Branches`."""
        return self._last.features


class StateDecoder(Decoder):
    """A decoder whose prefixes can be continued only from their end.

    Attributes:
        forward: Calls the model.
    """

    forward: Forward

    def set_probes(self, probes: ProbeSet | None) -> None:
        """See `Decoder`."""
        self.forward.probes = probes

    def compute(self, prefixes: Sequence[tuple[Sequence[int], Any]]) -> list[StatePrefix]:
        """See `Decoder`. Equal prefixes are computed once, then copied."""
        found: list[StatePrefix] = []
        keys: list[object] = []
        for ids, known in prefixes:
            is_own = known not in found and self._may_continue(known, ids)
            found.append(known if is_own else StatePrefix(self))
            keys.append(known if is_own else tuple(ids))
        sources = [found[index] for index in first_equal(keys)]
        missing = {
            source: list(ids[len(source.token_ids) :])
            for source, (ids, _) in zip(sources, prefixes, strict=True)
        }
        new = [(source, ids) for source, ids in missing.items() if ids]
        if new:
            self.extend(new)
        for prefix, source in zip(found, sources, strict=True):
            if prefix is not source:
                prefix.token_ids, prefix.last = source.token_ids, source.last
                prefix.states = self.copy_states(source.states)
        return found

    @abstractmethod
    def extend(self, new: Sequence[tuple[StatePrefix, list[int]]]) -> None:
        """Append tokens to prefixes."""

    @abstractmethod
    def copy_states(self, states: Any) -> Any:
        """Return states that may be continued independently."""

    def _may_continue(self, known: Any, ids: Sequence[int]) -> bool:
        """Whether a prefix is one of this decoder that can be continued to some tokens."""
        if not isinstance(known, StatePrefix) or known.decoder is not self:
            return False
        if known.probes is not self.forward.probes:  # its last token lacks their features
            return False
        size = len(known.token_ids)
        return 0 < size <= len(ids) and known.token_ids == list(ids[:size])
