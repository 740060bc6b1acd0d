"""Backends of tiny random models, and counts of their calls."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch

from benchmarks.tiny_models import random_model
from stars_engine.backends.base import DraftRequest, PrefixHandle
from stars_engine.backends.forked import ForkingDecoder
from stars_engine.backends.padded import PaddedDecoder
from stars_engine.backends.shared import SharedPrefixDecoder
from stars_engine.backends.transformers import TransformersBackend
from stars_engine.backends.uncached import UncachedDecoder
from stars_engine.config import SamplingParams, TransformersModel
from stars_engine.hidden_states.probes import Probe

DECODERS = {
    "shared": SharedPrefixDecoder,
    "graphs": partial(SharedPrefixDecoder, use_graphs=True),
    "padded": PaddedDecoder,
    "forked": ForkingDecoder,
    "uncached": UncachedDecoder,
}


def random_backend(
    family: str, tokenizer: object, *, scale: float = 1.0, **more: object
) -> TransformersBackend:
    model = random_model(family, scale=scale, **more)
    return TransformersBackend(TransformersModel(model=model, tokenizer=tokenizer))


class Text:
    """One text that a backend continues."""

    def __init__(self, backend: TransformersBackend, prompt: Sequence[int]) -> None:
        self.backend, self.prompt = backend, list(prompt)
        self.token_ids = list(prompt)
        self.handle = PrefixHandle()

    def accept(self, ids: Sequence[int]) -> None:
        self.token_ids += ids

    @torch.inference_mode()
    def next_logits(self) -> torch.Tensor:
        """Have the text computed; return the logits after it."""
        [computed] = self.backend.decoder.compute([(self.token_ids, self.handle.cached)])
        self.handle.cached = computed
        return computed.last_output

    def request(
        self, uniforms: Sequence[float], sampling: SamplingParams, lookahead: int = 0
    ) -> DraftRequest:
        ids = tuple(self.token_ids)
        return DraftRequest(ids, len(self.prompt), uniforms, sampling, lookahead, self.handle)


class Fed:
    """Counts the tokens that a model reads."""

    def __init__(self, backend: TransformersBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shapes: list[tuple[int, int]] = []
        original = backend.model.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            self.shapes.append(tuple(kwargs["input_ids"].shape))
            return original(*args, **kwargs)

        monkeypatch.setattr(backend.model, "forward", forward)

    def take(self) -> list[tuple[int, int]]:
        shapes, self.shapes = self.shapes, []
        return shapes


def pool_of(backend: TransformersBackend) -> Any:
    assert isinstance(backend.decoder, SharedPrefixDecoder)
    return backend.decoder.cache.pool


def probe_of(backend: TransformersBackend, layers: tuple[int, ...], size: int = 3) -> Probe:
    generator = torch.Generator().manual_seed(size)
    weight = torch.randn(size, len(layers) * backend.hidden_size, generator=generator)
    probe = Probe(layers, weight, torch.randn(size, generator=generator))
    backend.attach(probe)
    return probe
