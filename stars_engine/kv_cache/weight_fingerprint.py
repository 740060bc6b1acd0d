"""Whether a model's weights are still those that something was read with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from typing import NamedTuple

import torch

_LOOKED_AT = 4  # elements of each weight
_MOST_LOOKED_AT = 1024  # weights, about: of more, every second or third


class Change(Enum):
    """What has become of weights since they were looked at."""

    NONE = "none"
    VALUES = "other values"
    KIND = "another type or device"


class Watch:
    """Watches the weights of modules: trained, loaded, moved, adapters added, switched or merged.

    Args:
        modules: Whose weights.
    """

    def __init__(self, modules: Sequence[torch.nn.Module]) -> None:
        self._modules = modules
        self._stamp, self._elements = self._look(), some_elements(self._weights())

    @torch.no_grad()
    def change(self, *, thoroughly: bool) -> Change:
        """Return what has changed since the last call.

        Args:
            thoroughly: Look at some elements of each weight, too: whoever writes through `.data`,
                as peft does when it merges an adapter, leaves no version. Takes milliseconds.
        """
        before, self._stamp = self._stamp, self._look()
        change = Change.NONE if self._stamp == before else Change.VALUES
        if self._stamp.kind != before.kind:
            change = Change.KIND
        if thoroughly or change is not Change.NONE:
            elements, self._elements = self._elements, some_elements(self._weights())
            if change is Change.NONE and elements != self._elements:
                change = Change.VALUES
        return change

    def _weights(self) -> list[torch.Tensor]:
        return [weight for module in self._modules for weight in module.parameters()]

    def _look(self) -> _Stamp:
        weights = self._weights()
        return _Stamp(
            tuple(dict.fromkeys((weight.dtype, weight.device) for weight in weights)),
            tuple((weight.data_ptr(), _version(weight)) for weight in weights),
            tuple(_adapters(self._modules)),
        )


class _Stamp(NamedTuple):
    """What changes when weights do, mostly.

    Attributes:
        kind: Type and device of the weights.
        weights: Identity and version of each.
        adapters: Which are in use, merged, and how strong.
    """

    kind: tuple[object, ...]
    weights: tuple[object, ...]
    adapters: tuple[object, ...]


def some_elements(weights: Sequence[torch.Tensor]) -> bytes:
    """Return some elements of weights, in bits; those of each device are fetched at once."""
    found: dict[torch.device, list[torch.Tensor]] = {}
    for weight in weights[:: 1 + len(weights) // _MOST_LOOKED_AT]:
        if weight.numel() and weight.device.type != "meta":
            found.setdefault(weight.device, []).append(_some_of(weight.detach()).float())
    return b"".join(torch.cat(some).cpu().numpy().tobytes() for some in found.values())


def _some_of(weight: torch.Tensor) -> torch.Tensor:
    step = max(1, (weight.numel() - 1) // (_LOOKED_AT - 1))
    if weight.is_contiguous():
        return weight.view(-1)[::step][:_LOOKED_AT]
    places = torch.arange(0, weight.numel(), step)[:_LOOKED_AT]
    return weight[torch.unravel_index(places, weight.shape)]


def _version(weight: torch.Tensor) -> int:
    try:
        return weight._version  # noqa: SLF001
    except RuntimeError:  # one that was made in inference mode has none
        return 0


def _adapters(modules: Sequence[torch.nn.Module]) -> Iterator[object]:
    names = ("_disable_adapters", "_active_adapter", "merged_adapters", "scaling")
    for module in modules:
        for layer in module.modules():
            if hasattr(layer, "_disable_adapters"):
                yield tuple(str(getattr(layer, name, None)) for name in names)
