"""Draw one token for each row of a batch whose rows have settings of their own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property

import torch

from stars_engine.backends.base import Draft, DraftRequest
from stars_engine.backends.decoders import Prefix
from stars_engine.backends.masks import Masks
from stars_engine.config import SamplingParams
from stars_engine.grammars import Grammars
from stars_engine.sampling import precise_dtype, propose, uses_penalties


class Row:
    """One candidate in the making, then its lookahead.

    Attributes:
        request: What is asked for.
        grammar: Where in its grammar it is, if it has one.
        done: Whether it has all its tokens. It runs on beside the others; what it draws is dropped.
    """

    def __init__(self, request: DraftRequest) -> None:
        self.request = request
        prefix: Prefix = request.slot
        self.grammar = None if prefix.grammar is None else prefix.grammar.fork()
        self.done = False
        self._ids: list[int] = []
        self._num_candidate = len(request.uniforms)

    @property
    def in_lookahead(self) -> bool:
        """Whether the candidate itself is complete."""
        return len(self._ids) >= self._num_candidate

    @property
    def uniform(self) -> float | None:
        """What the next token is drawn by; None to take the likeliest."""
        if self.done:  # as the rows beside it
            return None if self.request.lookahead else 0.0
        return None if self.in_lookahead else self.request.uniforms[len(self._ids)]

    def append(self, token: int, *, is_end: bool) -> None:
        """Add the next token."""
        self._ids.append(token)
        self.done = is_end or len(self._ids) == self._num_candidate + self.request.lookahead
        if self.grammar is not None and not is_end:
            self.grammar.consume([token])

    @property
    def draft(self) -> Draft:
        """What has come of it."""
        cut = self._num_candidate
        return Draft(tuple(self._ids[:cut]), tuple(self._ids[cut:]))


class RowSampler:
    """Draws one token per row and step; rows with the same settings are filtered together.

    Args:
        requests: What each row is to be.
        logits: `(rows, vocab)`, those before the first step.
        end_ids: The model's end-of-text tokens.
        grammars: What grammars are read with; None if no row has one.
    """

    def __init__(
        self,
        requests: Sequence[DraftRequest],
        logits: torch.Tensor,
        end_ids: frozenset[int],
        grammars: Grammars | None,
    ) -> None:
        device, vocab_size = logits.device, logits.shape[-1]
        self._end_ids = end_ids
        self._groups: list[_Group] = []
        by_sampling: dict[tuple[int, int], list[int]] = defaultdict(list)
        for row, request in enumerate(requests):
            # Rows at different positions reach min_tokens at different steps.
            position = _num_completion_tokens(request) if request.sampling.min_tokens else 0
            by_sampling[id(request.sampling), position].append(row)
        for (_, position), rows in by_sampling.items():
            prefixes = [requests[row].slot for row in rows]
            sampling = requests[rows[0]].sampling
            group = _Group(rows, sampling, position, prefixes, vocab_size).to(device)
            if sampling.grammar is not None:
                assert grammars is not None
                group.masks = Masks(grammars, sampling, len(rows))
            self._groups.append(group)

    def draw(self, logits: torch.Tensor, rows: Sequence[Row], step: int) -> torch.Tensor:
        """Return `(rows,)` tokens from `(rows, vocab)` logits and what each row is drawn by.

        Masks are those of the last `prepare`.

        A row without a uniform gets its likeliest token. `NO_TOKEN` stands where a row's logits and
        settings leave nothing to draw from.
        """
        uniforms = [row.uniform for row in rows]
        quantiles = torch.tensor(
            [uniform or 0.0 for uniform in uniforms],
            dtype=precise_dtype(logits.device),
            device=logits.device,
        )
        tokens = torch.empty(len(logits), dtype=torch.long, device=logits.device)
        for group in self._groups:
            sampling = group.sampling
            banned: tuple[int, ...] = ()
            if group.position + step < sampling.min_tokens:
                banned = (*self._end_ids, *sampling.stop_token_ids)
            greedy = [uniforms[row] is None for row in group.indices]
            # A single group is all rows: picking them out would copy the logits.
            own = slice(None) if len(self._groups) == 1 else group.rows
            drawn = group.draw(logits[own], quantiles[own], banned, greedy)
            tokens[own] = drawn
            if group.counts is not None:
                # A row with no token has ended; what is counted in it is of no use.
                column = drawn.clamp(min=0)[:, None]
                group.counts.scatter_add_(1, column, torch.ones_like(column))
        return tokens

    def prepare(self, rows: Sequence[Row]) -> None:
        """Have the masks of the next step made while the model reads."""
        for group in self._groups:
            if group.masks is not None:
                # Rows that are done have no grammar to keep to.
                states = [None if rows[row].done else rows[row].grammar for row in group.indices]
                group.masks.prepare(states)


class _Group:
    """Rows that share sampling settings, with the token counts their penalties need."""

    def __init__(
        self,
        rows: list[int],
        sampling: SamplingParams,
        position: int,
        prefixes: Sequence[Prefix],
        vocab_size: int,
    ) -> None:
        self.indices = rows
        self.rows = torch.tensor(rows)
        self.sampling = sampling
        self.position = position
        self.masks: Masks | None = None
        self.counts: torch.Tensor | None = None  # (rows, vocab), of the completion
        self.in_prompt: torch.Tensor | None = None  # (rows, vocab)
        if uses_penalties(sampling):
            self.counts = torch.stack(
                [_count(p.token_ids[p.num_prompt_tokens :], vocab_size) for p in prefixes]
            )
            self.in_prompt = torch.stack(
                [_count(p.token_ids[: p.num_prompt_tokens], vocab_size) > 0 for p in prefixes]
            )

    def draw(
        self,
        logits: torch.Tensor,
        quantiles: torch.Tensor,
        banned_ids: Sequence[int],
        greedy: Sequence[bool],
    ) -> torch.Tensor:
        """Return each row's token: drawn from the proposal, or the likeliest."""
        choices = [
            propose(
                logits,
                sampling,
                counts=self.counts,
                in_prompt=self.in_prompt,
                banned_ids=banned_ids,
                allowed=None if self.masks is None else self.masks.allowed,
            ).draw(quantiles)
            for sampling, wanted in (
                (self.sampling, not all(greedy)),
                (self._greedy_sampling, any(greedy)),
            )
            if wanted
        ]
        if len(choices) == 1:
            return choices[0]
        drawn, likeliest = choices
        return torch.where(torch.tensor(greedy, device=logits.device), likeliest, drawn)

    @cached_property
    def _greedy_sampling(self) -> SamplingParams:
        return self.sampling.replace(temperature=0)

    def to(self, device: torch.device) -> _Group:
        self.rows = self.rows.to(device)
        if self.counts is not None and self.in_prompt is not None:
            self.counts, self.in_prompt = self.counts.to(device), self.in_prompt.to(device)
        return self


def _count(ids: Sequence[int], vocab_size: int) -> torch.Tensor:
    return torch.bincount(torch.tensor(ids, dtype=torch.long), minlength=vocab_size)


def _num_completion_tokens(request: DraftRequest) -> int:
    prefix: Prefix = request.slot
    return len(prefix.token_ids) - prefix.num_prompt_tokens
