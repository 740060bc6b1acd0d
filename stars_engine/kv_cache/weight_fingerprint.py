"""Whether a model's weights have changed since something was computed with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

_NUM_SAMPLED = 4  # elements of each weight
_MAX_SAMPLED = 1024  # weights, about: of more, every second or third


class WeightFingerprint:
    """Notices that weights were trained, loaded or moved, or adapters added, switched or merged.

    Args:
        modules: Whose weights.
    """

    def __init__(self, modules: Sequence[torch.nn.Module]) -> None:
        self._modules = modules
        self._state, self._elements = self._read_state(), sample_elements(self._weights())

    @torch.no_grad()
    def has_changed(self, *, thorough: bool) -> bool:
        """Return whether weights have changed since the last call.

        Args:
            thorough: Also compare some elements of each weight, which takes milliseconds: writing
                through `.data`, as peft does when it merges an adapter, leaves no version.
        """
        before, self._state = self._state, self._read_state()
        changed = self._state != before
        if thorough or changed:
            elements, self._elements = self._elements, sample_elements(self._weights())
            changed = changed or elements != self._elements
        return changed

    def _weights(self) -> list[torch.Tensor]:
        weights = [weight for module in self._modules for weight in module.parameters()]
        return [plain for weight in weights for plain in _plain_tensors(weight)]

    def _read_state(self) -> _State:
        weights = self._weights()
        return _State(
            tuple(dict.fromkeys((weight.dtype, weight.device) for weight in weights)),
            tuple((weight.data_ptr(), _version(weight)) for weight in weights),
            tuple(_adapters(self._modules)),
        )


class _State(NamedTuple):
    """What mostly changes when weights do.

    Attributes:
        kind: Type and device of the weights.
        weights: Identity and version of each.
        adapters: Which are in use, merged, and how strong.
    """

    kind: tuple[object, ...]
    weights: tuple[object, ...]
    adapters: tuple[object, ...]


def sample_elements(weights: Sequence[torch.Tensor]) -> bytes:
    """Return some elements of weights, as bytes; those of each device are fetched at once."""
    found: dict[torch.device, list[torch.Tensor]] = {}
    for weight in weights[:: 1 + len(weights) // _MAX_SAMPLED]:
        if weight.numel() and weight.device.type != "meta":
            found.setdefault(weight.device, []).append(_sample(weight.detach()).float())
    return b"".join(torch.cat(some).cpu().numpy().tobytes() for some in found.values())


def _plain_tensors(weight: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the tensors with the values of a weight: of a quantized one, integers and scales."""
    flatten = getattr(weight, "__tensor_flatten__", None)  # a protocol of tensor subclasses
    if flatten is None:
        yield weight
        return
    names, _ = flatten()
    for name in names:
        yield from _plain_tensors(getattr(weight, name))


def _sample(weight: torch.Tensor) -> torch.Tensor:
    step = max(1, (weight.numel() - 1) // (_NUM_SAMPLED - 1))
    if weight.is_contiguous():
        return weight.view(-1)[::step][:_NUM_SAMPLED]
    indices = torch.arange(0, weight.numel(), step)[:_NUM_SAMPLED]
    return weight[torch.unravel_index(indices, weight.shape)]


def _version(weight: torch.Tensor) -> int:
    try:
        return weight._version  # noqa: SLF001
    except RuntimeError:  # a tensor made in inference mode has none
        return 0


def _adapters(modules: Sequence[torch.nn.Module]) -> Iterator[object]:
    names = ("_disable_adapters", "_active_adapter", "merged_adapters", "scaling")
    for module in modules:
        for layer in module.modules():
            if hasattr(layer, "_disable_adapters"):
                yield tuple(str(getattr(layer, name, None)) for name in names)
