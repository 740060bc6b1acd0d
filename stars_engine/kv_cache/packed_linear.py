"""Packed linear layers: weights laid out once for the CPU kernel that multiplies few rows.

torch lays out a matrix again for each product of more than one row, which takes longer than the
product: two candidates cost twice as much as one, and eight hardly more than two. With packed
weights a decode step of eight rows costs little more than a step of one.

Packed copies are kept in addition to the model's weights and are made again when those change.

The kernel is compiled for each number of rows, and torch keeps what it compiled (about 0.6 MB for
each shape of a layer). So products are padded to a few numbers of rows; larger ones are split, or
left to the layer.
"""

from __future__ import annotations

import os
import threading
import weakref
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, TypeGuard

import torch
from torch.nn import functional

from stars_engine.kv_cache.weight_fingerprint import sample_elements

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MIN_WEIGHTS = 1 << 16  # of a layer: below, the kernel costs more than it saves
_MEMORY_DIVISOR = 4  # a packed model takes a fourth of the machine's memory at most
_ROWS = 8  # the layout is made for; other numbers are nearly as fast
# Numbers of rows that are multiplied.
_SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64)

_active = threading.local()


class _Packed:
    """A packed weight, and the fingerprint of the weight that was packed."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        self.state, self.elements = _state_of(layer), sample_elements([layer.weight])
        self.weight = _lay_out(layer.weight.detach())

    def is_of(self, layer: torch.nn.Linear) -> bool:
        """Whether packing the layer now would give the same."""
        return self.state == _state_of(layer) and self.elements == sample_elements([layer.weight])


# By layer: engines on one model share packed weights, as long as one of them exists.
_packed: weakref.WeakKeyDictionary[torch.nn.Linear, weakref.ref[_Packed]] = (
    weakref.WeakKeyDictionary()
)


class PackedLinears:
    """The linear layers of a model, with packed weights during passes of this thread.

    Layers that are small or not plain (quantized, parametrized, hooked, on another device) stay as
    they are, and so does a model that is too large to copy. Writing to a weight through `.data` is
    not noticed: whoever notices creates a new instance.

    Args:
        model: Any module.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        layers = [module for module in model.modules() if _can_pack(module)]
        num_bytes = sum(layer.weight.nbytes for layer in layers)
        self._layers = layers if num_bytes <= _most_bytes() else []
        self._forwards: dict[torch.nn.Linear, _Forward] = {}

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Let the layers multiply by packed weights; other threads see the layers' own."""
        # A layer whose forward was replaced meanwhile keeps it.
        layers = [layer for layer in self._layers if _is_plain(layer)]
        forwards = [(layer, self._forward_of(layer)) for layer in layers]
        _active.now = True
        try:
            for layer, forward in forwards:
                layer.__dict__["forward"] = forward  # around `Module.__setattr__`, which is slow
            yield
        finally:
            _active.now = False
            for layer, forward in forwards:
                if layer.__dict__.get("forward") is forward:
                    del layer.__dict__["forward"]

    @property
    def num_bytes(self) -> int:
        """Memory of the packed weights; engines on one model share it."""
        return sum(forward.packed.weight.nbytes for forward in tuple(self._forwards.values()))

    def _forward_of(self, layer: torch.nn.Linear) -> _Forward:
        known = self._forwards.get(layer)
        if known is None or known.packed.state != _state_of(layer):
            packed = _packed.get(layer, _nothing)()  # another engine's
            if packed is None or not packed.is_of(layer):
                packed = _Packed(layer)
                _packed[layer] = weakref.ref(packed)
            known = self._forwards[layer] = _Forward(layer, packed)
        return known


class _Forward:
    """Multiplies by a packed weight in our passes, and as the layer does in those of others.

    A copy or pickle of the layer that is made meanwhile gets the layer's own forward.
    """

    def __init__(self, layer: torch.nn.Linear, packed: _Packed) -> None:
        self._layer, self.packed = layer, packed

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        layer = self._layer
        if getattr(_active, "now", False) and states.dtype == layer.weight.dtype:
            return _multiply_in_sizes(states, self.packed.weight, layer)
        return functional.linear(states, layer.weight, layer.bias)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[[torch.Tensor], torch.Tensor]:
        return partial(torch.nn.Linear.forward, memo[id(self._layer)])

    def __reduce__(self) -> tuple[Any, ...]:
        return partial, (torch.nn.Linear.forward, self._layer)


def _nothing() -> None:
    return None


def _can_pack(module: torch.nn.Module) -> TypeGuard[torch.nn.Linear]:
    if type(module) is not torch.nn.Linear or not _is_plain(module):
        return False
    weight: Any = module.weight
    if type(weight) is not torch.nn.Parameter:  # such as a quantized weight of torchao
        return False
    if weight.device.type != "cpu" or weight.dtype not in _DTYPES or weight.numel() < _MIN_WEIGHTS:
        return False
    return _works(weight.dtype)


def _is_plain(layer: torch.nn.Module) -> bool:
    """Whether a layer has its own forward, or the one that a copy got from us."""
    forward = layer.__dict__.get("forward")
    is_copied = isinstance(forward, partial) and forward.func is torch.nn.Linear.forward
    return forward is None or is_copied


def _state_of(layer: torch.nn.Linear) -> tuple[int, int]:
    weight = layer.weight
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version  # noqa: SLF001


def _multiply_in_sizes(
    states: torch.Tensor, packed: torch.Tensor, layer: torch.nn.Linear
) -> torch.Tensor:
    """Multiply `(..., in_features)` by a layer's packed weight, `_SIZES` rows at a time."""
    num_rows = states.numel() // layer.in_features
    if num_rows in _SIZES:
        return _multiply(states, packed, layer.bias)
    if num_rows > _SIZES[-1] and states.dtype == torch.float32:
        # As fast for so many rows, and this kernel is compiled for any number of them.
        return functional.linear(states, layer.weight, layer.bias)
    rows = states.reshape(-1, layer.in_features)
    parts = torch.split(rows, _SIZES[-1])
    products = [_multiply_padded(part, packed, layer.bias) for part in parts]
    product = products[0] if len(products) == 1 else torch.cat(products)
    return product.view(*states.shape[:-1], layer.out_features)


def _multiply_padded(rows: torch.Tensor, packed: torch.Tensor, bias: Any) -> torch.Tensor:
    num_rows = rows.shape[0]
    num_missing = _SIZES[bisect_left(_SIZES, num_rows)] - num_rows
    return _multiply(functional.pad(rows, (0, 0, 0, num_missing)), packed, bias)[:num_rows]


# These operations are private (torch's compiler uses them), so they may be missing one day.


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
    """Whether packed products exist for a type, and are right."""
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
    return memory // _MEMORY_DIVISOR
