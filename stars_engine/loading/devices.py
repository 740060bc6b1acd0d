"""Choose the device and the precision of a model."""

from __future__ import annotations

from typing import Any

import torch

from stars_engine.config.models import Checkpoint
from stars_engine.errors import ModelLoadError


def pick_device(name: str) -> torch.device:
    """Convert the field `device` to an available device.

    Raises:
        ModelLoadError: The device is not available.
    """
    mps = torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelLoadError(
            f"device={name!r}: this process sees {torch.cuda.device_count()} CUDA devices. Hint: "
            "use device='auto', or install a torch build for your GPU"
        )
    if device.type == "mps" and not mps:
        raise ModelLoadError("device='mps': this machine has no MPS. Hint: use device='auto'")
    return device


def pick_dtype(config: Checkpoint, device: torch.device | None) -> Any:
    """Return the dtype of the weights as transformers takes it.

    Args:
        config: The checkpoint; "auto" is the stored precision, and float32 on a CPU.
        device: The device of the whole model, or None if `device_map` places its parts.
    """
    if config.dtype != "auto":
        return getattr(torch, config.dtype)
    is_cpu = _is_cpu(config.device_map) if device is None else device.type == "cpu"
    # Most CPUs emulate half precision, and widening stored weights to float32 is exact.
    return torch.float32 if is_cpu else "auto"


def _is_cpu(device_map: str | dict[str, Any] | None) -> bool:
    """Whether a device map puts the whole model on the CPU, where parts on disk also compute.

    The automatic maps of accelerate do so if there is no accelerator.
    """
    if isinstance(device_map, dict):
        return all(str(device) in ("cpu", "disk") for device in device_map.values())
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        return not torch.accelerator.is_available()
    return device_map == "cpu"
