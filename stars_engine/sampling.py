"""The proposal: pure functions from logits to probabilities, and from uniforms to tokens.

The order is: penalties, bias, minimum length, grammar, temperature, top-k, top-p, min-p. Tokens
that tie with the last kept one are kept, so the proposal does not depend on the order of a sort.

Truncation keeps few tokens, and float64 arithmetic on a whole vocabulary costs as much as a layer
of a small model. So if the result is exact, a shortlist of tokens is found first, and the rest of
the arithmetic runs on the shortlist.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple
from weakref import ref

import torch
from torch.nn import functional

from stars_engine.config import SamplingParams

NO_TOKEN = -1
_BLOCK_LEN = 64
_NUCLEUS_LENS = (255, 4095)  # shortlist lengths to try for top-p, in order
_BiasKey = tuple[int, torch.dtype, torch.device]  # the settings by identity
_biases: dict[_BiasKey, tuple[ref[SamplingParams], torch.Tensor, torch.Tensor]] = {}


class Proposal(NamedTuple):
    """The distribution from which tokens are drafted.

    Attributes:
        probs: `(rows, choices)`, float64 if the device supports it. If no token can be drawn from
            a row (all are banned, or a logit is nan), all its values are nan or 0.
        ids: `(rows, choices)`, the token id of each choice, ascending; None if the choices are the
            whole vocabulary.
    """

    probs: torch.Tensor
    ids: torch.Tensor | None = None

    def draw(self, uniforms: torch.Tensor) -> torch.Tensor:
        """Return the token at each uniform's quantile, or `NO_TOKEN`: `(rows,)`."""
        indices = inverse_cdf(self.probs, uniforms)
        if self.ids is None:
            return indices
        tokens = self.ids.gather(1, indices.clamp(min=0)[:, None])[:, 0]
        return tokens.where(indices != NO_TOKEN, NO_TOKEN)


class Shortlist(NamedTuple):
    """The tokens that truncation can keep, in the order of their ids.

    Tokens that cannot be drawn have the value -inf.

    Attributes:
        values: `(rows, tokens)`, their logits.
        ids: `(rows, tokens)`.
        log_total: `(rows, 1)`, log-sum-exp of all logits over the temperature; None for top-k,
            which does not need it.
    """

    values: torch.Tensor
    ids: torch.Tensor
    log_total: torch.Tensor | None


def propose(
    logits: torch.Tensor,
    sampling: SamplingParams,
    *,
    counts: torch.Tensor | None = None,
    in_prompt: torch.Tensor | None = None,
    banned_ids: Sequence[int] = (),
    allowed: Callable[[torch.Tensor, int | None], torch.Tensor | Shortlist] | None = None,
) -> Proposal:
    """Return the distribution from which tokens are drafted.

    At temperature 0, the likeliest token has probability 1 (the lowest id on ties).

    Args:
        logits: `(rows, vocab)`, of the base model, any floating dtype.
        sampling: Filters and penalties, the same for all rows.
        counts: `(rows, vocab)`, how often each token occurs in the completion so far; required if
            a penalty is set.
        in_prompt: `(rows, vocab)` bool, tokens of the prompt; required for a repetition penalty.
        banned_ids: Tokens that must not be drawn, such as end of text before `min_tokens`.
        allowed: Returns the tokens that may be drawn. It takes the logits so far, and how many of
            the likeliest tokens are needed (None: all). It returns a mask, `(rows, vocab)` bool,
            or a shortlist.
    """
    precise = precise_dtype(logits.device)
    if uses_penalties(sampling):
        assert counts is not None
        assert in_prompt is not None
        logits = penalize(logits.to(precise), counts, in_prompt, sampling)
    if sampling.logit_bias:
        logits = add_bias(logits.to(precise), sampling)
    if banned_ids:
        logits = logits.index_fill(
            1, on_device(tuple(banned_ids), torch.long, logits.device), -torch.inf
        )
    shortlist = None
    if allowed is not None:
        found = allowed(logits, 1 if sampling.temperature == 0 else sampling.top_k)
        shortlist = found if isinstance(found, Shortlist) else None
        logits = logits if isinstance(found, Shortlist) else logits.where(found, -torch.inf)
    shortlist = shortlist or _shortlist(logits, sampling)
    logits, ids, log_total = shortlist or (logits, None, None)
    if sampling.temperature == 0:
        return _likeliest(logits, ids)
    logits = logits.to(precise) / sampling.temperature
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = keep_top_p(logits, sampling.top_p, log_total, most=sampling.top_k)
    if sampling.min_p > 0:
        logits = keep_min_p(logits, sampling.min_p)
    return Proposal(logits.softmax(-1), ids)


def _likeliest(logits: torch.Tensor, ids: torch.Tensor | None) -> Proposal:
    """Return the likeliest token of each row, the first on ties; probability 0 if there is none."""
    first = logits.argmax(-1, keepdim=True)
    is_any = logits.gather(1, first).isfinite().to(precise_dtype(logits.device))
    return Proposal(is_any, first if ids is None else ids.gather(1, first))


def _shortlist(logits: torch.Tensor, sampling: SamplingParams) -> Shortlist | None:
    """Return the tokens that top-k, or else top-p, can keep; None if they may be many.

    Returns None on GPUs, where this test would synchronize at every token.
    """
    if logits.device.type != "cpu" or sampling.temperature == 0:
        return None
    if sampling.top_k is None and sampling.top_p == 1:
        return None
    if sampling.top_k is not None:
        return _top_k(logits, sampling.top_k)
    scaled = logits.to(precise_dtype(logits.device)) / sampling.temperature
    log_total = scaled.logsumexp(-1, keepdim=True)
    found = (_nucleus(logits, scaled, log_total, sampling.top_p, n) for n in _NUCLEUS_LENS)
    return next((shortlist for shortlist in found if shortlist is not None), None)


def _top_k(logits: torch.Tensor, k: int) -> Shortlist | None:
    if k >= logits.shape[-1]:
        return None
    values, ids = largest(logits, k + 1)
    last, beyond = values[:, -2], values[:, -1]
    no_tie_beyond = (beyond < last) | (last == -torch.inf)
    return _by_id(values, ids, None) if no_tie_beyond.all() else None


def _nucleus(
    logits: torch.Tensor, scaled: torch.Tensor, log_total: torch.Tensor, p: float, num_tokens: int
) -> Shortlist | None:
    """Return the likeliest tokens if those above the last one have total probability `p`."""
    if num_tokens >= logits.shape[-1]:
        return None
    values, ids = largest(logits, num_tokens + 1)
    probs = (scaled.gather(1, ids) - log_total).exp()
    mass = (probs * (values > values[:, -1:])).sum(-1)
    return _by_id(values, ids, log_total) if (mass >= p).all() else None


def _by_id(values: torch.Tensor, ids: torch.Tensor, log_total: torch.Tensor | None) -> Shortlist:
    """Drop the last token and sort the others by id."""
    ids, order = ids[:, :-1].sort()
    return Shortlist(values.gather(1, order), ids, log_total)


def largest(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the largest logits of each row, descending, and their ids: both `(rows, count)`.

    A block can only contain one of them if its maximum is among the `count` largest block maximums,
    so only those blocks are searched. The choice among equal logits is undefined, as with `topk`.
    """
    num_tokens = logits.shape[-1]
    num_blocks = -(-num_tokens // _BLOCK_LEN)
    if num_blocks <= 2 * count:
        found = logits.topk(count)
        return found.values, found.indices
    if behind := num_blocks * _BLOCK_LEN - num_tokens:
        logits = functional.pad(logits, (0, behind), value=-torch.inf)
    blocks = logits.view(len(logits), num_blocks, _BLOCK_LEN)
    chosen = blocks.amax(-1).topk(count).indices
    inside = blocks.gather(1, chosen[..., None].expand(-1, -1, _BLOCK_LEN)).flatten(1)
    values, indices = inside.topk(count)
    within = indices % _BLOCK_LEN
    return values, chosen.gather(1, indices // _BLOCK_LEN) * _BLOCK_LEN + within


def inverse_cdf(probs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Return the token at each uniform's quantile, with tokens in the order of their ids.

    In id order, unlike rank order, two logits that swap ranks by rounding do not change the result.

    Args:
        probs: `(rows, vocab)`; rows need not be normalized.
        uniforms: `(rows,)` in [0, 1).

    Returns:
        `(rows,)` token ids, never of probability 0; `NO_TOKEN` if a row is not a distribution.
    """
    cdf = probs.cumsum(-1)
    total = cdf[:, -1:].contiguous()
    tokens = torch.searchsorted(cdf, uniforms[:, None].to(cdf) * total, right=True)
    last = torch.searchsorted(cdf, total)  # the limit, in case rounding exceeds the end
    drawable = (total > 0) & total.isfinite()
    return torch.minimum(tokens, last).where(drawable, NO_TOKEN)[:, 0]


def uses_penalties(sampling: SamplingParams) -> bool:
    """Return whether a penalty makes the proposal depend on the tokens so far."""
    return (
        sampling.repetition_penalty != 1
        or sampling.presence_penalty != 0
        or sampling.frequency_penalty != 0
    )


def penalize(
    logits: torch.Tensor,
    counts: torch.Tensor,
    in_prompt: torch.Tensor,
    sampling: SamplingParams,
) -> torch.Tensor:
    """Apply penalties: repetition to prompt and completion, the others to the completion only."""
    in_completion = counts > 0
    penalty = sampling.repetition_penalty
    repeated = torch.where(logits > 0, logits / penalty, logits * penalty)
    logits = torch.where(in_completion | in_prompt, repeated, logits)
    logits = logits - sampling.frequency_penalty * counts.to(logits.dtype)
    return logits - sampling.presence_penalty * in_completion.to(logits.dtype)


def add_bias(logits: torch.Tensor, sampling: SamplingParams) -> torch.Tensor:
    """Add the bias of the settings to the logits of single tokens."""
    ids, values = _bias_on_device(sampling, logits.dtype, logits.device)
    return logits.index_add(1, ids, values.expand(len(logits), -1))


def _bias_on_device(
    sampling: SamplingParams, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and biases, kept while the settings exist: they may be a vocabulary."""
    key = id(sampling), dtype, device
    found = _biases.get(key)
    if found is None:
        bias = sampling.logit_bias or {}
        ids = torch.tensor(list(bias), dtype=torch.long, device=device)
        values = torch.tensor(list(bias.values()), dtype=dtype, device=device)
        found = ref(sampling, lambda _: _biases.pop(key, None)), ids, values
        _biases[key] = found
    return found[1:]


@lru_cache(maxsize=64)
def on_device(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return a cached tensor; copying it at every token would synchronize with the GPU."""
    return torch.tensor(values, dtype=dtype, device=device)


def keep_top_k(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Keep the k largest logits of each row, and ties with the k-th."""
    kth = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < kth, -torch.inf)


def keep_top_p(
    logits: torch.Tensor,
    p: float,
    log_total: torch.Tensor | None = None,
    *,
    most: int | None = None,
) -> torch.Tensor:
    """Keep the smallest set of likeliest tokens with total probability `p`, and ties with the last.

    Args:
        logits: `(rows, choices)`.
        p: Probability.
        log_total: `(rows, 1)`, log-sum-exp of all logits, if `logits` holds only some of them.
        most: Maximum number of choices in a row, not counting ties with the last. Only that many
            logits are sorted. If the cut falls among the ties, their value is the cut.
    """
    if log_total is None:
        log_total = logits.logsumexp(-1, keepdim=True)
    if most is not None and most < logits.shape[-1]:
        ordered = logits.topk(most).values
    else:
        ordered = logits.sort(descending=True).values
    probs = (ordered - log_total).exp()
    mass_before = probs.cumsum(-1) - probs
    num_kept = (mass_before < p).sum(-1, keepdim=True)
    last_kept = ordered.gather(-1, (num_kept - 1).clamp(min=0))  # num_kept is 0 if one is nan
    return logits.masked_fill(logits < last_kept, -torch.inf)


def keep_min_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    """Keep tokens with at least `p` times the probability of the likeliest."""
    probs = logits.softmax(-1)
    return logits.masked_fill(probs < p * probs.amax(-1, keepdim=True), -torch.inf)


def precise_dtype(device: torch.device) -> torch.dtype:
    """Return the most precise dtype of a device; float32 sums over a vocabulary are inexact."""
    return torch.float32 if device.type == "mps" else torch.float64
