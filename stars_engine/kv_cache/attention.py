"""Shared-prefix attention: many candidates attend to the prefixes they have in common.

The keys of a prefix are read once for all its candidates, whose queries are folded into one long
query. The keys in each candidate's scratch KV are read separately. Each part yields the softmax
over its keys and their log-sum-exp; weighted by the latter, the parts add up to the softmax over
all keys. Nothing is copied, concatenated or masked out for a candidate.

The function is registered in transformers' `AttentionInterface`, which passes sliding windows, soft
caps and sinks. Position biases and custom masks are refused; what is not passed at all, the
self-check at load detects.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from stars_engine.kv_cache.fused_kernels import Kernel, kernel_for
from stars_engine.kv_cache.layout import AttentionLayout, PrefixGroup

_PREFIX = "stars_shared_prefix_"
_REFUSED = ("position_bias", "alibi", "head_mask", "block_indices")
_active = threading.local()

_FUSED_FROM = 128  # keys; below, the kernel costs more than it saves

Part = tuple[torch.Tensor, torch.Tensor]  # output (..., D) and log-sum-exp (...)


class Scores(NamedTuple):
    """How a layer scores keys.

    Attributes:
        scale: Factor of the products.
        window: Tokens that a query sees at most, itself included; None for all.
        softcap: Bound, by tanh; None for none.
    """

    scale: float
    window: int | None
    softcap: float | None

    def kernel(self, query: torch.Tensor, value: torch.Tensor) -> Kernel | None:
        """Return the fused kernel for these scores, if there is one."""
        if self.softcap is not None or query.shape[-1] != value.shape[-1]:
            return None
        return kernel_for(query)


@contextmanager
def attending(layout: AttentionLayout) -> Iterator[None]:
    """Let forward passes of this thread attend by a layout."""
    _active.layout = layout
    try:
        yield
    finally:
        _active.layout = None


def shared_prefix_attention(  # noqa: PLR0917 - transformers calls it
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attend to the prefixes of the active layout and to scratch KV, causally.

    Args:
        module: The attention layer.
        query: `(rows, heads, num_new, head_dim)`.
        key: Of all scratch tokens, `(rows, kv_heads, num_scratch, head_dim)`, the last `num_new`
            of which are new.
        value: Like `key`.
        attention_mask: Must be None: there is nothing to mask.
        scaling: Of the scores.
        sliding_window: Tokens that a query sees at most, itself included.
        softcap: Bound of the scores, by tanh.
        s_aux: Score of each head's sink, which takes weight and adds nothing.
        **others: Ignored, or refused.

    Returns:
        `(rows, num_new, heads, head_dim)`, and no weights.
    """
    layout: AttentionLayout = _active.layout
    refused = [name for name in _REFUSED if others.get(name) is not None]
    if refused or attention_mask is not None:
        found = ", ".join(refused) or "custom masks"
        raise ValueError(f"shared-prefix attention does not support {found}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = Scores(scale, sliding_window, softcap)
    parts = [_to_scratch(layout, query, key, value, scores)]
    parts += _to_all_prefixes(layout, module.layer_idx, query, scores)
    if s_aux is not None:
        sink = _precise(s_aux).reshape(1, -1, 1).expand(parts[0][1].shape)
        parts.append((torch.zeros_like(parts[0][0]), sink))
    return _merge(parts).to(query.dtype).transpose(1, 2), None


def _to_all_prefixes(
    layout: AttentionLayout, layer: int, query: torch.Tensor, scores: Scores
) -> list[Part]:
    """Attend to the prefixes; return nothing if none is in reach."""
    found = [
        (group.members, _to_prefixes(group, layout.num_before, layer, query, scores))
        for group in layout.groups
    ]
    within = [(members, part) for members, part in found if part is not None]
    if len(within) == 1 and within[0][0] is None:
        return [within[0][1]]
    if not within:
        return []
    rows, heads, num_new, _ = query.shape
    like = within[0][1]
    output = like[0].new_zeros(rows, heads, num_new, like[0].shape[-1])
    lse = like[1].new_full((rows, heads, num_new), -torch.inf)  # of a row without a prefix
    for members, part in within:
        assert members is not None
        indices = members.to(query.device)
        output[indices], lse[indices] = part
    return [(output, lse)]


def _to_prefixes(
    group: PrefixGroup, num_before: int, layer: int, query: torch.Tensor, scores: Scores
) -> Part | None:
    """Attend to prefixes in one tensor, all queries of a prefix as one; None if out of reach."""
    if group.members is not None:
        query = query[group.members.to(query.device)]
    _, heads, num_new, dim = query.shape
    start, mask = group.mask(scores.window, num_before, num_new, query.device)
    keys = group.keys[layer][:, :, start:]
    values = group.values[layer][:, :, start:]
    num_prefixes, kv_heads, width, _ = keys.shape
    if width == 0:
        return None
    most, groups = group.placement.most, heads // kv_heads
    grid = group.placement.to_grid(query, num_prefixes)
    folded = grid.view(num_prefixes, most, kv_heads, groups, num_new, dim).transpose(1, 2)
    folded = folded.reshape(num_prefixes, kv_heads, most * groups * num_new, dim)
    if mask is not None:
        mask = mask.expand(num_prefixes, 1, most * groups, num_new, width)
        mask = mask.reshape(num_prefixes, 1, most * groups * num_new, width)
    output, lse = _attend(folded, keys, values, scores, mask)
    unfolded = (num_prefixes, kv_heads, most, groups, num_new)
    output = (
        output.reshape(*unfolded, -1).transpose(1, 2).reshape(-1, heads, num_new, values.shape[-1])
    )
    lse = lse.reshape(unfolded).transpose(1, 2).reshape(-1, heads, num_new)
    return group.placement.from_grid(output), group.placement.from_grid(lse)


def _to_scratch(
    layout: AttentionLayout,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scores: Scores,
) -> Part:
    """Attend to a row's scratch KV, each query up to its own token."""
    rows, heads, num_new, dim = query.shape
    kv_heads, num_scratch = key.shape[1], key.shape[2]
    groups = heads // kv_heads
    mask = layout.scratch_mask(scores.window, num_new, num_scratch, query.device)
    windowed = scores.window is not None and num_scratch > scores.window
    if num_new == num_scratch > 1 and not windowed and (kernel := scores.kernel(query, value)):
        key, value = (_repeat(states, groups) for states in (key, value))
        return kernel(query, key, value, scale=scores.scale, causal=True)
    folded = query.reshape(rows, kv_heads, groups * num_new, dim)
    if mask is not None:
        mask = mask.expand(groups, num_new, num_scratch).reshape(
            1, 1, groups * num_new, num_scratch
        )
    output, lse = _attend(folded, key, value, scores, mask)
    return output.reshape(rows, heads, num_new, -1), lse.reshape(rows, heads, num_new)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scores: Scores,
    mask: torch.Tensor | None,
) -> Part:
    """Attend from `(batch, heads, queries, dim)` to all keys that a mask leaves."""
    is_long = mask is None and key.shape[2] >= _FUSED_FROM
    if is_long and (kernel := scores.kernel(query, value)):
        return kernel(query, key, value, scale=scores.scale, causal=False)
    raw = _precise((query * scores.scale) @ key.mT)
    if scores.softcap is not None:
        raw = torch.tanh(raw / scores.softcap) * scores.softcap
    if mask is not None:
        raw = raw.masked_fill(~mask, float("-inf"))
    lse = total = raw.logsumexp(-1)
    if mask is not None:  # a query that sees nothing has no weights: exp(-inf), not exp(nan)
        total = lse.clamp(min=torch.finfo(torch.float32).min)
    weights = (raw - total[..., None]).exp()
    return weights.to(value.dtype) @ value, lse


def _merge(parts: Sequence[Part]) -> torch.Tensor:
    """Weight outputs by their shares of the sum of exponentials."""
    if len(parts) == 1:
        return parts[0][0]
    shares = torch.stack([lse for _, lse in parts]).softmax(0)
    output = parts[0][0] * shares[0][..., None]
    for (part, _), share in zip(parts[1:], shares[1:], strict=True):
        output = output + part * share[..., None]
    return output


def _repeat(states: torch.Tensor, groups: int) -> torch.Tensor:
    return states if groups == 1 else states.repeat_interleave(groups, dim=1)


def _precise(states: torch.Tensor) -> torch.Tensor:
    return states if states.dtype == torch.float64 else states.float()


# --- names in transformers' registries ---

_names: dict[str, str] = {}  # of ours, by the implementation that each replaces


def name_for(original: str | None) -> str:
    """Return the name under which our attention replaces another implementation.

    While a config has the name, other threads may run the same model: for them the name calls the
    other implementation, masks included.
    """
    key = original or "eager"
    if key.startswith(_PREFIX):
        return key
    if key not in _names:
        name = f"{_PREFIX}{len(_names)}"
        AttentionInterface.register(name, partial(_attend_or, key))
        AttentionMaskInterface.register(name, partial(_mask_or, key))
        _names[key] = name
    return _names[key]


def _attend_or(original: str, module: Any, *args: Any, **kwargs: Any) -> Any:
    if getattr(_active, "layout", None) is not None:
        return shared_prefix_attention(module, *args, **kwargs)
    # Eager attention is in the module of the family, not in the registry.
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    return ALL_ATTENTION_FUNCTIONS.get(original, eager)(module, *args, **kwargs)


def _mask_or(original: str, *args: Any, **kwargs: Any) -> Any:
    if getattr(_active, "layout", None) is not None:
        return None
    build = ALL_MASK_ATTENTION_FUNCTIONS.get(original)
    return None if build is None else build(*args, **kwargs)
