"""The value head itself: what a judge will say of an answer, estimated from hidden states so far.

A head is a small network over a token's hidden states in some layers. It reads the last token, the
mean over the prompt's last token and all tokens of the answer, or averages its scores over these
tokens. Its first linear map commutes with the mean, so it is a `Probe` that runs while the language
model drafts; the rest reads only the probe's features.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save

from stars_engine.errors import ModelLoadError
from stars_engine.files.disk import make_folder, write_file
from stars_engine.hidden_states.probes import GivesHiddenStates, Probe

Pooling = Literal["last", "mean", "mean_score"]
POOLINGS: tuple[Pooling, ...] = ("last", "mean", "mean_score")

WEIGHTS_FILE, CONFIG_FILE = "value_head.safetensors", "value_head.json"
_ABOUT = "value_head"  # of the metadata of the weights
_TITLE = "value head"
_FORMAT = 1
_NUM_CHECK_TOKENS = 24
# Largest difference of hidden states that is not taken for another model, relative to their norm.
# A checkpoint loaded in another dtype differs by a few percent.
_SAME_DTYPE, _OTHER_DTYPE = 0.02, 0.15


@dataclass(frozen=True, eq=False)
class ValueHead:
    """A value head and what it was fitted to.

    Attributes:
        layers: Indices of hidden states: 0 are the embeddings, i the output of layer i.
        pooling: "last" (the last token's states), "mean" (their running mean), or "mean_score"
            (the mean of the scores of all tokens).
        weights: `(out, in)` of each linear layer; the first reads the states of `layers`, one
            after the other, the last has one output. A ReLU
            follows each layer except the last.
        biases: `(out,)` of each linear layer.
        base: What identifies the language model; see `fingerprint_of`.
        about: Readable facts about the fit.
    """

    layers: tuple[int, ...]
    pooling: Pooling
    weights: Sequence[torch.Tensor]
    biases: Sequence[torch.Tensor]
    base: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    def new_probe(self) -> Probe:
        """Return the first linear layer as a probe."""
        return Probe(self.layers, self.weights[0], self.biases[0])

    def values(self, features: NDArray[Any]) -> NDArray[np.float64]:
        """Return the value after each token, from `(tokens, features)` of a probe."""
        rows = np.asarray(features, dtype=np.float64)
        counts = np.arange(1, len(rows) + 1)[:, None]
        if self.pooling == "mean":
            return self._rest(np.cumsum(rows, axis=0) / counts)
        values = self._rest(rows)
        return np.cumsum(values) / counts[:, 0] if self.pooling == "mean_score" else values

    def value(self, features: NDArray[Any]) -> float:
        """Return the value after the last token; equal to the last of `values`."""
        rows = np.asarray(features, dtype=np.float64)
        if self.pooling == "last":
            return float(self._rest(rows[-1:])[0])
        if self.pooling == "mean":
            return float(self._rest(rows.mean(axis=0, keepdims=True))[0])
        return float(self._rest(rows).mean())

    def _rest(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            rows = np.maximum(rows, 0) @ weight.double().numpy().T + bias.double().numpy()
        return rows[:, 0]

    # --- files ---

    def save(self, folder: str | Path) -> None:
        """Write the head to a folder: safetensors and JSON.

        Raises:
            ConfigError: A file cannot be written.
        """
        folder = make_folder(folder, _TITLE)
        tensors = {}
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            tensors[f"{index}.weight"] = weight.float().contiguous()
            tensors[f"{index}.bias"] = bias.float().contiguous()
        base = dict(self.base)
        states = base.pop("states", None)
        if states is not None:
            tensors["base.states"] = torch.as_tensor(states).float().contiguous()
        about = {
            "format": _FORMAT,
            "layers": list(self.layers),
            "pooling": self.pooling,
            "base": base,
            "about": self.about,
        }
        text = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
        # One file holds everything, so that it is replaced as a whole. The other is for people.
        write_file(folder / WEIGHTS_FILE, save(tensors, {_ABOUT: text}), _TITLE)
        write_file(folder / CONFIG_FILE, text, _TITLE)

    @classmethod
    def load(cls, folder: str | Path) -> ValueHead:
        """Read a head that `save` wrote.

        Raises:
            ModelLoadError: The folder has no such files, or they are not a value head.
        """
        folder = Path(folder).expanduser()
        try:
            with safe_open(folder / WEIGHTS_FILE, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                about = json.loads((file.metadata() or {})[_ABOUT])
            _check_format(about)
            count = sum(name.endswith(".weight") for name in tensors)
            weights = [tensors[f"{index}.weight"] for index in range(count)]
            biases = [tensors[f"{index}.bias"] for index in range(count)]
            check_shapes(weights, biases)
            base = {**about["base"], "states": tensors.get("base.states")}
        except Exception as error:
            raise ModelLoadError(
                f"{str(folder)!r} has no value head that can be read ({error}). Hint: give the "
                "folder that train_guide or `stars train-guide` wrote"
            ) from error
        layers = tuple(int(layer) for layer in about["layers"])
        return cls(layers, about["pooling"], weights, biases, base, about["about"])

    # --- the language model ---

    def check_base(self, model: GivesHiddenStates) -> None:
        """Check that a language model is the one that the head was fitted to.

        Raises:
            ModelLoadError: Its hidden states, or its tokenizer, are different.
        """
        if not self.base:
            return
        now, then = _kind_of(model), self.base
        differing = [
            f"{name} is {now[name]!r}, not {then[name]!r}"
            for name in ("class", "num_layers", "hidden_size", "tokenizer")
            if then.get(name) not in (None, now[name])
        ]
        if not differing and then.get("states") is not None:
            expected = torch.as_tensor(then["states"]).double()
            found = fingerprint_of(model, self.layers)["states"].double()
            difference = (found - expected).norm() / expected.norm()
            limit = _SAME_DTYPE if then.get("dtype") == now["dtype"] else _OTHER_DTYPE
            if not difference <= limit:
                differing = [f"its hidden states differ by {100 * float(difference):.0f} %"]
        if differing:
            raise ModelLoadError(
                "the value head was fitted to another language model: "
                f"{'; '.join(differing)}. Hint: use the language model that it was fitted to, or "
                "fit a head to this one with `stars train-guide`"
            )


def fingerprint_of(model: Any, layers: Sequence[int]) -> dict[str, Any]:
    """Return what identifies a language model for a head: its kind, and states of a fixed text.

    Hidden states change whenever weights or an adapter do, and hardly if only the dtype does.

    Args:
        model: A `GivesHiddenStates`.
        layers: The layers that the head reads.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.vocab_size, (_NUM_CHECK_TOKENS,), generator=generator).tolist()
    [states] = model.read_states([ids], layers)
    return {**_kind_of(model), "states": states.float().mean(0).cpu()}


def _kind_of(model: Any) -> dict[str, Any]:
    inner = getattr(model, "model", model)
    codec = getattr(model, "codec", None)
    return {
        "class": type(inner).__name__,
        "dtype": str(getattr(inner, "dtype", None)).removeprefix("torch."),
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "tokenizer": None if codec is None else codec.fingerprint(),
    }


def _check_format(about: dict[str, Any]) -> None:
    if about["format"] != _FORMAT or about["pooling"] not in POOLINGS:
        raise ValueError(f"format {about['format']}, pooling {about['pooling']!r}")


def check_shapes(weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor]) -> None:
    """Check that layers fit together and end in one number.

    Raises:
        ValueError: The shapes do not fit.
    """
    sizes = [tuple(weight.shape) for weight in weights]
    fits = all(first[0] == then[1] for first, then in pairwise(sizes))
    if not sizes or not fits or sizes[-1][0] != 1:
        raise ValueError(f"layers of shapes {sizes} do not lead from hidden states to one value")
    if [len(bias) for bias in biases] != [size[0] for size in sizes]:
        raise ValueError("a bias has another size than its layer")
