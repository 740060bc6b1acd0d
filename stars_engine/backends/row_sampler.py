"""Draws one token for each row of a batch whose rows have different sampling settings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future
from functools import cached_property
from typing import Any

import torch

from stars_engine.backends.base import DraftRequest
from stars_engine.backends.draft_batch import DraftRow
from stars_engine.backends.grammar_masks import GrammarMasks
from stars_engine.config import SamplingParams
from stars_engine.grammars import Grammars
from stars_engine.sampling import NO_TOKEN, on_device, precise_dtype, propose, uses_penalties
from stars_engine.threads.all_done import all_done


class RowSampler:
    """Draws one token per row and step; rows with the same settings are filtered together.

    Args:
        requests: The request of each row.
        logits: `(rows, vocab)`, of the first step.
        end_ids: The model's end-of-text tokens.
        grammars: The grammars of the model's vocabulary; None if no row has one.
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
        self._num_candidate = [len(request.uniforms) for request in requests]
        num_steps = max(len(request.uniforms) + request.lookahead for request in requests)
        self._quantiles = torch.tensor(  # (rows, steps)
            [[*r.uniforms, *[0.0] * (num_steps - len(r.uniforms))] for r in requests],
            dtype=precise_dtype(device),
            device=device,
        )
        self._forced = _forced_tokens(requests, device)
        self._groups: list[_Group] = []
        by_sampling: dict[tuple[int, int], list[int]] = defaultdict(list)
        for row, request in enumerate(requests):
            # Rows at different positions reach min_tokens at different steps.
            position = request.num_completion_tokens if request.sampling.min_tokens else 0
            by_sampling[id(request.sampling), position].append(row)
        for (_, position), rows in by_sampling.items():
            asked = [requests[row] for row in rows]
            sampling = asked[0].sampling
            group = _Group(rows, sampling, position, asked, vocab_size).to(device)
            if sampling.grammar is not None:
                assert grammars is not None
                group.masks = GrammarMasks(grammars, sampling, len(rows))
            self._groups.append(group)

    def draw(self, logits: torch.Tensor, rows: Sequence[DraftRow], step: int) -> torch.Tensor:
        """Return a token for each row, `(rows,)`, from `(rows, vocab)` logits.

        Masks are those of the last `prepare`. A row in its lookahead gets its likeliest token.
        `NO_TOKEN` means that a row's logits and settings leave nothing to draw. A forced token
        is taken whatever they leave.
        """
        quantiles = self._quantiles[:, step]
        looks_ahead = [step >= count for count in self._num_candidate]
        # Tokens of a row that is done are dropped: it follows the other rows.
        open_rows = [index for index, row in enumerate(rows) if not row.done]
        is_ahead = {looks_ahead[index] for index in open_rows}
        if len(is_ahead) == 1:
            looks_ahead = [*is_ahead] * len(rows)
        tokens = torch.empty(len(logits), dtype=torch.long, device=logits.device)
        for group in self._groups:
            sampling = group.sampling
            banned: tuple[int, ...] = ()
            if group.position + step < sampling.min_tokens:
                banned = (*self._end_ids, *sampling.stop_token_ids)
            greedy = [looks_ahead[row] for row in group.indices]
            # A single group is all rows: indexing would copy the logits.
            own = slice(None) if len(self._groups) == 1 else group.rows
            drawn = group.draw(logits[own], quantiles[own], banned, greedy)
            if self._forced is not None and step < self._forced.shape[1]:
                forced = self._forced[own, step]
                drawn = torch.where(forced == NO_TOKEN, drawn, forced)
            tokens[own] = drawn
            if group.counts is not None:
                # A row with no token has ended; its counts are not used.
                column = drawn.clamp(min=0)[:, None]
                group.counts.scatter_add_(1, column, torch.ones_like(column))
        return tokens

    def prepare(self, rows: Sequence[DraftRow]) -> None:
        """Start computing the masks of the next step while the model runs."""
        for group in self._groups:
            if group.masks is not None:
                # Rows that are done need no mask.
                states = [None if rows[row].done else rows[row].grammar for row in group.indices]
                group.masks.prepare(states)

    @property
    def waits_for(self) -> Future[Any] | None:
        """Done when all masks of the next step are; None if they are."""
        pending = (None if group.masks is None else group.masks.pending for group in self._groups)
        return all_done([future for future in pending if future is not None])


class _Group:
    """Rows that share sampling settings, with the token counts their penalties need."""

    def __init__(
        self,
        rows: list[int],
        sampling: SamplingParams,
        position: int,
        requests: Sequence[DraftRequest],
        vocab_size: int,
    ) -> None:
        self.indices = rows
        self.rows = torch.tensor(rows)
        self.sampling = sampling
        self.position = position
        self.masks: GrammarMasks | None = None
        self.counts: torch.Tensor | None = None  # (rows, vocab), of the completion
        self.in_prompt: torch.Tensor | None = None  # (rows, vocab)
        if uses_penalties(sampling):
            self.counts = torch.stack(
                [_count(r.token_ids[r.num_prompt_tokens :], vocab_size) for r in requests]
            )
            self.in_prompt = torch.stack(
                [_count(r.token_ids[: r.num_prompt_tokens], vocab_size) > 0 for r in requests]
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
        return torch.where(on_device(tuple(greedy), torch.bool, logits.device), likeliest, drawn)

    @cached_property
    def _greedy_sampling(self) -> SamplingParams:
        return self.sampling.replace(temperature=0)

    def to(self, device: torch.device) -> _Group:
        self.rows = self.rows.to(device)
        if self.counts is not None and self.in_prompt is not None:
            self.counts, self.in_prompt = self.counts.to(device), self.in_prompt.to(device)
        return self


def _forced_tokens(requests: Sequence[DraftRequest], device: torch.device) -> torch.Tensor | None:
    """Return `(rows, steps)` tokens that are not drawn, `NO_TOKEN` elsewhere; None if all are."""
    width = max(len(request.forced) for request in requests)
    if not width:
        return None
    rows = [[*r.forced, *[NO_TOKEN] * (width - len(r.forced))] for r in requests]
    return torch.tensor(rows, device=device)


def _count(ids: Sequence[int], vocab_size: int) -> torch.Tensor:
    return torch.bincount(torch.tensor(ids, dtype=torch.long), minlength=vocab_size)
