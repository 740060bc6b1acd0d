"""The proposal: logits to probabilities, and one uniform to one token. Pure functions of tensors.

Order: penalties, bias, minimum length, temperature, top-k, top-p, min-p. Tokens that tie with the
last one kept are kept too, so that the proposal does not depend on a sort's order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from stars_engine.config import SamplingParams

NO_TOKEN = -1


def propose(
    logits: torch.Tensor,
    sampling: SamplingParams,
    *,
    counts: torch.Tensor | None = None,
    in_prompt: torch.Tensor | None = None,
    banned_ids: Sequence[int] = (),
) -> torch.Tensor:
    """Return the distribution that tokens are drafted from.

    Args:
        logits: `(rows, vocab)`, of the base model, any floating dtype.
        sampling: Filters and penalties, the same for all rows.
        counts: `(rows, vocab)`, how often each token is in the completion so far; needed if any
            penalty is set.
        in_prompt: `(rows, vocab)` bool, tokens of the prompt; needed for a repetition penalty.
        banned_ids: Tokens that cannot be drawn here, such as end of text before `min_tokens`.

    Returns:
        `(rows, vocab)` probabilities, float64 where the device has it. At temperature 0 all
        probability is on the likeliest token (the one of lowest id on ties). Where no token can be
        drawn (all are banned, or a logit is nan) a row is nan or 0 throughout.
    """
    logits = logits.to(precise_dtype(logits.device))
    if uses_penalties(sampling):
        assert counts is not None
        assert in_prompt is not None
        logits = penalize(logits, counts, in_prompt, sampling)
    if sampling.logit_bias:
        logits = add_bias(logits, sampling.logit_bias)
    if banned_ids:
        logits = logits.clone()
        logits[:, list(banned_ids)] = -torch.inf
    if sampling.temperature == 0:
        top = logits.max(-1, keepdim=True)
        share = top.values.isfinite().to(logits)  # nothing, where nothing is likeliest
        return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), share)
    logits = logits / sampling.temperature
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = keep_top_p(logits, sampling.top_p)
    if sampling.min_p > 0:
        logits = keep_min_p(logits, sampling.min_p)
    return logits.softmax(-1)


def inverse_cdf(probs: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Return the token at each uniform's quantile, tokens taken in the order of their ids.

    Id order, not rank order: two logits that swap ranks by rounding then change nothing.

    Args:
        probs: `(rows, vocab)`; rows need not be normalised.
        uniforms: `(rows,)` in [0, 1).

    Returns:
        `(rows,)` token ids; never one of probability 0. `NO_TOKEN` where a row is no distribution.
    """
    cdf = probs.cumsum(-1)
    total = cdf[:, -1:].contiguous()
    tokens = torch.searchsorted(cdf, uniforms[:, None].to(cdf) * total, right=True)
    last = torch.searchsorted(cdf, total)  # where rounding would run past the end
    drawable = (total > 0) & total.isfinite()
    return torch.minimum(tokens, last).where(drawable, NO_TOKEN)[:, 0]


def uses_penalties(sampling: SamplingParams) -> bool:
    """Return whether the proposal depends on the tokens so far through penalties."""
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
    """Repetition counts prompt and completion; presence and frequency the completion only."""
    in_completion = counts > 0
    penalty = sampling.repetition_penalty
    repeated = torch.where(logits > 0, logits / penalty, logits * penalty)
    logits = torch.where(in_completion | in_prompt, repeated, logits)
    logits = logits - sampling.frequency_penalty * counts.to(logits.dtype)
    return logits - sampling.presence_penalty * in_completion.to(logits.dtype)


def add_bias(logits: torch.Tensor, bias: Mapping[int, float]) -> torch.Tensor:
    """Add to the logits of single tokens."""
    logits = logits.clone()
    values = torch.tensor(list(bias.values()), dtype=logits.dtype, device=logits.device)
    logits[:, list(bias)] += values
    return logits


def keep_top_k(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Keep the k largest logits of each row, and ties with the k-th."""
    kth = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < kth, -torch.inf)


def keep_top_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    """Keep the fewest likeliest tokens that hold probability `p`, and ties with the last."""
    ordered = logits.sort(descending=True).values
    probs = ordered.softmax(-1)
    mass_before = probs.cumsum(-1) - probs
    num_kept = (mass_before < p).sum(-1, keepdim=True)
    last_kept = ordered.gather(-1, (num_kept - 1).clamp(min=0))  # 0 are kept where one is nan
    return logits.masked_fill(logits < last_kept, -torch.inf)


def keep_min_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    """Keep tokens with at least `p` times the probability of the likeliest."""
    probs = logits.softmax(-1)
    return logits.masked_fill(probs < p * probs.amax(-1, keepdim=True), -torch.inf)


def precise_dtype(device: torch.device) -> torch.dtype:
    """The finest floating type of a device: summing a vocabulary in float32 moves its borders."""
    return torch.float32 if device.type == "mps" else torch.float64
