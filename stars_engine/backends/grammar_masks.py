"""Token masks: which tokens the grammars of a batch allow next, found in the cheaper of two ways.

All tokens at once, in parallel to the model's pass, since only earlier tokens matter. Or, if a
grammar allows much of the vocabulary and top-k needs few tokens, one by one from the likeliest down
until there are enough: a scan of the vocabulary may take as long as a layer of a small model.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from math import inf, isnan
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stars_engine.config import SamplingParams
from stars_engine.grammars import Grammars, GrammarState
from stars_engine.sampling import Shortlist, largest

_MIN_TRIED = 32
_TRIED = 4  # times as many tokens as are asked for, where a grammar allows a quarter or more
_WIDE = 0.25


class GrammarMasks:
    """The masks of rows that share sampling settings, at one step after the other.

    Args:
        grammars: The grammars of the model's vocabulary.
        sampling: Settings of all rows.
        num_rows: How many there are.
    """

    def __init__(self, grammars: Grammars, sampling: SamplingParams, num_rows: int) -> None:
        self._grammars = grammars
        self._stop_token_ids = sampling.stop_token_ids
        self._may_try = [sampling.top_k is not None or sampling.temperature == 0] * num_rows
        self._is_wide = [False] * num_rows  # whether the grammar allows much at this step
        self._states: list[GrammarState | None] = []
        self._tried: list[int] = []  # rows of this step
        self._soon: Future[NDArray[np.bool_]] | None = None  # of the others
        self._flags: NDArray[np.bool_] | None = None  # the same, when done

    def prepare(self, states: Sequence[GrammarState | None]) -> None:
        """Start on the next step; the states must not change before `allowed`."""
        self._states = list(states)
        self._tried = [
            row
            for row, state in enumerate(states)
            if state is not None
            and self._may_try[row]
            and self._is_wide[row]
            and not state.grammar.is_slow
        ]
        self._soon = self._flags = None
        if sum(state is not None for state in states) > len(self._tried):
            others = [None if row in self._tried else state for row, state in enumerate(states)]
            self._soon = self._grammars.allowed_soon(others, self._stop_token_ids)

    @property
    def pending(self) -> Future[NDArray[np.bool_]] | None:
        """The masks of the next step, while they are being computed."""
        return None if self._soon is None or self._soon.done() else self._soon

    def allowed(self, logits: torch.Tensor, num_needed: int | None) -> torch.Tensor | Shortlist:
        """Return which tokens may come next: all, or the likeliest and ties with the last of them.

        Args:
            logits: `(rows, vocab)`, after penalties and bias.
            num_needed: How many of the likeliest are needed; None for all.
        """
        found: dict[int, _Tokens] = {}
        if num_needed is not None and self._tried and logits.device.type == "cpu":
            found = self._likeliest(logits, num_needed)
            if self._soon is None and len(found) == len(self._tried):
                return _few(found, logits)
        flags = self._at_once(logits)
        for row in self._tried.copy():
            if row in found:
                flags[row] = False
                flags[row, found[row].ids] = True
            else:
                flags[row] = self._grammars.allowed([self._states[row]], self._stop_token_ids)[0]
                self._may_try[row] = False
                self._tried.remove(row)
        return torch.from_numpy(flags).to(logits.device)

    def _at_once(self, logits: torch.Tensor) -> NDArray[np.bool_]:
        """Return the masks of rows that are not tried token by token."""
        if self._flags is None:
            if self._soon is None:
                self._flags = np.ones(logits.shape, dtype=np.bool_)
            else:
                self._flags = self._soon.result()
            for row, state in enumerate(self._states):
                if state is not None and row not in self._tried:
                    share = np.count_nonzero(self._flags[row]) / self._flags.shape[1]
                    self._is_wide[row] = share >= _WIDE
        return self._flags

    def _likeliest(self, logits: torch.Tensor, num_needed: int) -> dict[int, _Tokens]:
        """Return the tokens of each row that is tried, if enough are found."""
        num_tried = min(max(_TRIED * num_needed, _MIN_TRIED), logits.shape[-1])
        # Picking out all rows would copy the logits.
        picked = logits if len(self._tried) == len(logits) else logits[self._tried]
        values, ids = largest(picked, num_tried)
        is_all = num_tried == logits.shape[-1]
        found: dict[int, _Tokens] = {}
        for row, *tokens in zip(self._tried, values.tolist(), ids.tolist(), strict=True):
            kept = self._keep(row, _Tokens(*tokens), num_needed, is_all=is_all)
            if kept is not None:
                found[row] = kept
        return found

    def _keep(self, row: int, tokens: _Tokens, num_needed: int, *, is_all: bool) -> _Tokens | None:
        """Return which of a row's tokens, by falling value, are allowed; None if too few."""
        state = self._states[row]
        assert state is not None
        kept = _Tokens([], [])
        for value, token in zip(*tokens, strict=True):
            if isnan(value):
                return None
            if value == -inf or (len(kept.ids) >= num_needed and value < kept.values[-1]):
                return kept
            if self._grammars.allows(state, token, self._stop_token_ids):
                kept.values.append(value)
                kept.ids.append(token)
        return kept if is_all else None


class _Tokens(NamedTuple):
    values: list[float]
    ids: list[int]


def _few(found: dict[int, _Tokens], logits: torch.Tensor) -> Shortlist:
    """Return the tokens of all rows, ascending; shorter rows are padded."""
    width = max(1, *(len(tokens.ids) for tokens in found.values()))
    ids = torch.zeros(len(logits), width, dtype=torch.long)
    values = torch.full((len(logits), width), -inf, dtype=logits.dtype)
    for row, tokens in found.items():
        order = sorted(range(len(tokens.ids)), key=tokens.ids.__getitem__)
        ids[row, : len(order)] = torch.tensor([tokens.ids[place] for place in order])
        values[row, : len(order)] = torch.tensor([tokens.values[place] for place in order])
    return Shortlist(values, ids, None)
