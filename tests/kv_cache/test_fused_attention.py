"""Fused attention is used only where it is correct."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from stars_engine.kv_cache import fused_kernels as kernels
from stars_engine.kv_cache.attention import _FUSED_FROM
from stars_engine.kv_cache.fused_kernels import kernel_for
from tests.support.backends import random_backend


@pytest.fixture(autouse=True)
def found_anew() -> Iterator[None]:
    kernels._find.cache_clear()
    yield
    kernels._find.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cpu_has_a_fused_kernel(dtype: torch.dtype) -> None:
    kernel = kernel_for(torch.zeros(1, 1, 1, 16, dtype=dtype))
    assert kernel is not None
    query, key, value = (torch.randn(2, 4, n, 16).to(dtype) for n in (3, 200, 200))
    output, lse = kernel(query, key, value, scale=0.2, causal=False)
    scores = query.double() @ key.double().mT * 0.2
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(
        output.double(), scores.softmax(-1) @ value.double(), atol=tolerance, rtol=tolerance
    )
    torch.testing.assert_close(lse.double(), scores.logsumexp(-1), atol=tolerance, rtol=tolerance)


def base_two(*args: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """As some kernels give it."""
    output, lse = original(*args, **options)
    return output, lse * 1.4426950408889634


def gone(*_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
    raise AttributeError("'_OpNamespace' 'aten' object has no attribute '...'")


def transposed(*args: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    output, lse = original(*args, **options)
    return output.transpose(1, 2), lse


original = kernels._on_cpu


@pytest.mark.parametrize("kernel", [base_two, gone, transposed])
def test_a_wrong_or_missing_kernel_is_not_used(
    kernel: Any, monkeypatch: pytest.MonkeyPatch, tokenizer: object
) -> None:
    monkeypatch.setattr(kernels, "_on_cpu", kernel)
    assert kernel_for(torch.zeros(1, 1, 1, 16)) is None
    assert random_backend("llama", tokenizer).path == "shared prefix"


def test_other_devices_and_dtypes_have_none() -> None:
    assert kernel_for(torch.zeros(1, 1, 1, 16, device="meta")) is None
    assert kernel_for(torch.zeros(1, 1, 1, 16, dtype=torch.int64)) is None


@torch.inference_mode()
def test_long_rows_of_several_candidates_attend_as_the_model_does(tokenizer: object) -> None:
    backend = random_backend("llama", tokenizer)
    count = _FUSED_FROM + 4
    rows = torch.randint(20, (2, count), generator=torch.Generator().manual_seed(0))
    prefixes = backend.decoder.compute([((5, 6), None), ((5, 6), None)])
    branches = backend.decoder.branch(prefixes, count)
    for step in range(count):
        logits = branches.step(rows[:, step])
    ids = torch.cat([torch.tensor([[5, 6]] * 2), rows], dim=1)
    torch.testing.assert_close(logits, backend.model(ids).logits[:, -1], atol=1e-3, rtol=1e-3)
