"""Random value heads, and what they read of a model."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

from stars_engine.hidden_states.value_head import Pooling, ValueHead, fingerprint_of


def random_head(
    model: Any, pooling: Pooling = "mean", *, hidden: int | None = None, scale: float = 1.0
) -> ValueHead:
    """Of the first and the last layer; linear, or with a layer between."""
    generator = torch.Generator().manual_seed(0)
    layers = (1, model.num_layers)
    sizes = [len(layers) * model.hidden_size, *([] if hidden is None else [hidden]), 1]
    weights = [
        scale * torch.randn(out, size, generator=generator) / size**0.5
        for size, out in pairwise(sizes)
    ]
    biases = [torch.randn(len(weight), generator=generator) for weight in weights]
    return ValueHead(layers, pooling, weights, biases, fingerprint_of(model, layers))
