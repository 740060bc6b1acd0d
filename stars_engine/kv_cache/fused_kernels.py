"""Fused attention kernels that also return the log-sum-exp of the scores.

These operations of torch are private, so they may be missing or different one day. Each is tried
once on random states, and used only if it agrees with the formula.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

# Attends from `(batch, heads, queries, dim)` to keys and values of the same form, all of them or
# causally; returns output and log-sum-exp `(batch, heads, queries)`.
Kernel = Callable[..., tuple[torch.Tensor, torch.Tensor]]

_CPU_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_CUDA_DTYPES = (torch.bfloat16, torch.float16)
_MAX_CUDA_DIM = 256
_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-4}


def kernel_for(query: torch.Tensor) -> Kernel | None:
    """Return the kernel for queries of a type and size; None if none is right."""
    return _find(query.device.type, query.dtype, query.shape[-1])


@cache
def _find(device: str, dtype: torch.dtype, dim: int) -> Kernel | None:
    if device == "cpu" and dtype in _CPU_DTYPES:
        kernel = _on_cpu
    elif device == "cuda" and dtype in _CUDA_DTYPES and dim % 8 == 0 and dim <= _MAX_CUDA_DIM:
        kernel = _on_cuda
    else:
        return None
    return kernel if _is_right(kernel, device, dtype, dim) else None


def _on_cpu(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scale: float, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(  # noqa: SLF001
        query, key, value, is_causal=causal, scale=scale
    )
    return output, lse


def _on_cuda(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scale: float, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    output, lse, *_ = torch.ops.aten._scaled_dot_product_flash_attention(  # noqa: SLF001
        query, key, value, 0.0, causal, scale=scale
    )
    return output, lse


@torch.no_grad()
def _is_right(kernel: Kernel, device: str, dtype: torch.dtype, dim: int) -> bool:
    generator = torch.Generator().manual_seed(0)
    states: list[Any] = [
        torch.randn(2, 3, 40, dim, generator=generator).to(device, dtype) for _ in range(3)
    ]
    query, key, value = (each.double() for each in states)
    scores = query @ key.mT * 0.3
    later = torch.ones(40, 40, dtype=torch.bool, device=device).triu(1)
    tolerance = _ROUNDING.get(dtype, 5e-2)
    for causal in (False, True):
        seen = scores.masked_fill(later, -torch.inf) if causal else scores
        try:
            output, lse = kernel(*states, scale=0.3, causal=causal)
        except (AttributeError, RuntimeError, TypeError, ValueError):
            return False
        wanted = seen.softmax(-1) @ value
        if output.shape != wanted.shape or lse.shape != seen.shape[:-1]:
            return False
        if not torch.allclose(output.double(), wanted, atol=tolerance, rtol=tolerance):
            return False
        if not torch.allclose(lse.double(), seen.logsumexp(-1), atol=tolerance, rtol=tolerance):
            return False
    return True
