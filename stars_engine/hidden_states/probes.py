"""Probes: features that a reward reads from hidden states while the language model drafts.

A probe is an affine map of a token's hidden states in chosen layers. Drafting computes these states
anyway, so a probe costs one small product per token. A draft carries the features of its tokens;
hidden states themselves are never kept.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol, TypeGuard
from weakref import WeakKeyDictionary

import torch

from stars_engine.protocols import has_members


class Probe:
    """Maps hidden states of one token to features. Compared by identity.

    Args:
        layers: Indices of hidden states: 0 are the embeddings, i the output of layer i.
        weight: `(features, len(layers) * hidden_size)`.
        bias: `(features,)`.

    Attributes:
        size: Number of features.
    """

    def __init__(self, layers: Sequence[int], weight: torch.Tensor, bias: torch.Tensor) -> None:
        self.layers = tuple(layers)
        self.weight, self.bias = weight.float(), bias.float()
        self.size = len(bias)

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Return features, `(..., features)`, of `(..., len(layers) * hidden_size)` states."""
        weight, bias = self.weight.to(states.device), self.bias.to(states.device)
        return torch.nn.functional.linear(states.float(), weight, bias)


class GivesHiddenStates(Protocol):
    """A language model whose drafts carry features of hidden states."""

    @property
    def num_layers(self) -> int:
        """Highest index of a hidden state."""

    @property
    def hidden_size(self) -> int:
        """Size of a hidden state."""

    def attach(self, probe: Probe) -> None:
        """Let drafts carry the features of a probe, as long as the probe exists.

        Raises:
            ModelLoadError: The model gives no such hidden states.
        """

    def read_states(
        self, rows: Sequence[Sequence[int]], layers: Sequence[int]
    ) -> list[torch.Tensor]:
        """Return `(tokens, len(layers) * hidden_size)` hidden states of rows, by plain passes."""


def gives_hidden_states(model: object) -> TypeGuard[GivesHiddenStates]:
    """Return whether a language model implements `GivesHiddenStates`."""
    return has_members(model, GivesHiddenStates)


class StepOutput(NamedTuple):
    """What a language model returns after the last token of each row.

    Attributes:
        logits: `(rows, vocab)`.
        features: `(rows, features)` of all probes, float32; None without probes.
    """

    logits: torch.Tensor
    features: torch.Tensor | None = None

    def row(self, index: int) -> StepOutput:
        """Return the output of one row, without the first dimension."""
        return StepOutput(
            self.logits[index], None if self.features is None else self.features[index]
        )

    def clone(self) -> StepOutput:
        """Return a copy with tensors of its own."""
        features = None if self.features is None else self.features.clone()
        return StepOutput(self.logits.clone(), features)

    @classmethod
    def stack(cls, rows: Sequence[StepOutput]) -> StepOutput:
        """Undo `row`."""
        features = [row.features for row in rows if row.features is not None]
        return cls(
            torch.stack([row.logits for row in rows]), torch.stack(features) if features else None
        )


class ProbeSet:
    """The probes of one model, computed together.

    Args:
        probes: The probes, at least one.
        device: Where features are computed.

    Attributes:
        layers: Indices of the hidden states that they read.
        columns: Which features belong to each probe.
    """

    def __init__(self, probes: Sequence[Probe], device: torch.device) -> None:
        self.layers = sorted({layer for probe in probes for layer in probe.layers})
        self.columns: WeakKeyDictionary[Probe, slice] = WeakKeyDictionary()
        self._num_probes = len(probes)
        self._parts = []
        start = 0
        for probe in probes:
            self.columns[probe] = slice(start, start + probe.size)
            start += probe.size
            # Moved here, so that a step of a CUDA graph copies nothing.
            moved = Probe(probe.layers, probe.weight.to(device), probe.bias.to(device))
            self._parts.append(moved)
        self._device = device

    def consists_of(self, probes: Collection[Probe]) -> bool:
        """Whether these are its probes, and none of them is gone."""
        return len(probes) == self._num_probes and set(probes) == set(self.columns)

    def __call__(self, hidden_states: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return `(rows, features)` after the last token of `(rows, tokens, hidden_size)` each."""
        last = {layer: hidden_states[layer][:, -1].to(self._device) for layer in self.layers}
        features = [
            part(torch.cat([last[layer].float() for layer in part.layers], dim=-1))
            for part in self._parts
        ]
        return torch.cat(features, dim=-1)
