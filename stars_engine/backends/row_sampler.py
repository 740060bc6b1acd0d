"""Draw one token for each row of a batch whose rows have settings of their own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch

from stars_engine.backends.base import DraftRequest
from stars_engine.backends.decoders import Prefix
from stars_engine.config import SamplingParams
from stars_engine.sampling import inverse_cdf, precise_dtype, propose, uses_penalties


class RowSampler:
    """Draws one token per row and step; rows with the same settings are filtered together."""

    def __init__(
        self, requests: Sequence[DraftRequest], logits: torch.Tensor, end_ids: frozenset[int]
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
            group = _Group(rows, sampling, position, prefixes, vocab_size)
            self._groups.append(group.to(device))

    def draw(self, logits: torch.Tensor, uniforms: Sequence[float], step: int) -> torch.Tensor:
        """Return `(rows,)` tokens from `(rows, vocab)` logits and one uniform per row.

        `NO_TOKEN` stands where a row's logits and settings leave nothing to draw from.
        """
        quantiles = torch.tensor(uniforms, dtype=precise_dtype(logits.device), device=logits.device)
        tokens = torch.empty(len(logits), dtype=torch.long, device=logits.device)
        for group in self._groups:
            sampling = group.sampling
            banned: tuple[int, ...] = ()
            if group.position + step < sampling.min_tokens:
                banned = (*self._end_ids, *sampling.stop_token_ids)
            probs = propose(
                logits[group.rows],
                sampling,
                counts=group.counts,
                in_prompt=group.in_prompt,
                banned_ids=banned,
            )
            drawn = inverse_cdf(probs, quantiles[group.rows])
            tokens[group.rows] = drawn
            if group.counts is not None:
                # A row with no token has ended; what is counted in it is of no use.
                column = drawn.clamp(min=0)[:, None]
                group.counts.scatter_add_(1, column, torch.ones_like(column))
        return tokens


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
        self.rows = torch.tensor(rows)
        self.sampling = sampling
        self.position = position
        self.counts: torch.Tensor | None = None  # (rows, vocab), of the completion
        self.in_prompt: torch.Tensor | None = None  # (rows, vocab)
        if uses_penalties(sampling):
            self.counts = torch.stack(
                [_count(p.token_ids[p.num_prompt_tokens :], vocab_size) for p in prefixes]
            )
            self.in_prompt = torch.stack(
                [_count(p.token_ids[: p.num_prompt_tokens], vocab_size) > 0 for p in prefixes]
            )

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
