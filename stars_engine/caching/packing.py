"""Linear layers of a CPU whose weights are laid out once for the kernel that multiplies few rows.

torch lays a matrix out anew for each product of more than one row, which takes longer than to
multiply: two candidates cost twice as much as one, and eight hardly more than two. With weights
laid out beforehand, a decode step of eight rows costs little more than a step of one.

The packed copies stand beside the model's own weights and are made again when those change.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple, TypeGuard

import torch
from torch.nn import functional

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_LEAST = 1 << 16  # weights of a layer: below, the kernel costs more than it saves
_SHARE_OF_MEMORY = 4  # a packed model takes a fourth of the machine's memory at most
_ROWS = 8  # that the layout is made for; others are multiplied nearly as fast

_passing = threading.local()


class _Packed(NamedTuple):
    """A packed weight, and what tells whether it still is the layer's."""

    state: tuple[int, int]
    weight: torch.Tensor


# By layer: two engines on one model share what is packed.
_packed: weakref.WeakKeyDictionary[torch.nn.Linear, _Packed] = weakref.WeakKeyDictionary()


class PackedLinears:
    """The linear layers of a model, with packed weights during passes of this thread.

    Layers that are small, or no plain ones (quantized, parametrized, hooked, on another device),
    stay as they are, and so does a model for whose copy there is too little memory.

    Args:
        model: Any module.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        layers = [module for module in model.modules() if _can_pack(module)]
        num_bytes = sum(layer.weight.nbytes for layer in layers)
        self._layers = layers if num_bytes <= _most_bytes() else []

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Let the layers multiply by packed weights; other threads see the layers' own."""
        if not self._layers:
            yield
            return
        forwards = [(layer, _forward_of(layer)) for layer in self._layers]
        _passing.now = True
        try:
            for layer, forward in forwards:
                layer.__dict__["forward"] = forward  # around `Module.__setattr__`, which is slow
            yield
        finally:
            _passing.now = False
            for layer, _ in forwards:
                layer.__dict__.pop("forward", None)


def _can_pack(module: torch.nn.Module) -> TypeGuard[torch.nn.Linear]:
    if type(module) is not torch.nn.Linear or "forward" in module.__dict__:
        return False
    weight: Any = module.weight
    if weight.device.type != "cpu" or weight.dtype not in _DTYPES or weight.numel() < _LEAST:
        return False
    return _works(weight.dtype)


def _forward_of(layer: torch.nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what multiplies by the packed weight in our passes, by the layer's own in others'."""
    weight, bias = layer.weight, layer.bias
    packed = _pack(layer)

    def forward(states: torch.Tensor) -> torch.Tensor:
        if getattr(_passing, "now", False) and states.dtype == weight.dtype:
            return _multiply(states, packed, bias)
        return functional.linear(states, weight, bias)

    return forward


def _pack(layer: torch.nn.Linear) -> torch.Tensor:
    weight = layer.weight
    state = weight.data_ptr(), 0 if weight.is_inference() else weight._version  # noqa: SLF001
    known = _packed.get(layer)
    if known is None or known.state != state:
        known = _packed[layer] = _Packed(state, _lay_out(weight.detach()))
    return known.weight


# These operations are private (torch's own compiler uses them), so they may be missing one day.


def _lay_out(weight: torch.Tensor) -> torch.Tensor:
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)  # noqa: SLF001
    return packed


def _multiply(states: torch.Tensor, packed: torch.Tensor, bias: Any) -> torch.Tensor:
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001
        states, packed, bias, "none", [], ""
    )
    return product


@cache
@torch.no_grad()
def _works(dtype: torch.dtype) -> bool:
    """Whether packed products are there for a type, and are right."""
    generator = torch.Generator().manual_seed(0)
    states, weight = (
        torch.randn(size, generator=generator).to(dtype) for size in ((2, 3, 48), (80, 48))
    )
    bias = weight[:, 0].contiguous()
    try:
        found = _multiply(states, _lay_out(weight), bias)
    except (AttributeError, RuntimeError, TypeError):
        return False
    wanted = functional.linear(states.double(), weight.double(), bias.double())
    rounding = {torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 3e-1}[dtype]
    return found.shape == wanted.shape and torch.allclose(found.double(), wanted, atol=rounding)


def _most_bytes() -> int:
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on every system
        memory = 16 << 30
    return memory // _SHARE_OF_MEMORY
