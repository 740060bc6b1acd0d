"""Heads of process reward models, which score every token, if transformers has no class for them.

Published process reward models often combine a plain backbone with a custom head: two linear layers
named `score` (Qwen2.5-Math-PRM), or one named `v_head` (TRL, Skywork). Both are read from the
checkpoint's safetensors, so that the checkpoint's own code does not run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from stars_engine.config import ProcessReward
from stars_engine.config.models import Checkpoint
from stars_engine.errors import ModelLoadError
from stars_engine.loading.models import load_model, read_config
from stars_engine.loading.sources import hub_token, resolve_source
from stars_engine.rewards.batching import at_columns

_HEAD = re.compile(r"^(?:score|v_head|value_head|reward_head|classifier)\.(.+)$")
_VALUE_HEAD_FILE = "value_head.safetensors"


class TokenHead:
    """A backbone and a head that computes labels for each token from its hidden states.

    Args:
        model: A transformers model that returns logits for each token, or a backbone.
        head: Applied to the backbone's last hidden states; None if the model has its own head.
    """

    def __init__(self, model: Any, head: torch.nn.Module | None) -> None:
        self.model, self.head = model, head

    def __call__(self, columns: torch.Tensor, **inputs: Any) -> torch.Tensor:
        """Return `(rows, count, labels)`; see `batching.CallAt`.

        Raises:
            ValueError: The model does not return labels for each token.
        """
        if self.head is None:
            # Not `output[0]`, which is the hidden states if the model has no head.
            logits = self.model(**inputs).logits
            shape = inputs["input_ids"].shape
            if logits.ndim != 3 or logits.shape[:2] != shape:
                raise ValueError(
                    f"its logits have shape {tuple(logits.shape)} for input_ids of shape "
                    f"{tuple(shape)}"
                )
            return at_columns(logits, columns)
        hidden = at_columns(self.model(**inputs).last_hidden_state, columns)
        weight = next(self.head.parameters())
        scores: torch.Tensor = self.head(hidden.to(weight.device, weight.dtype))
        return scores


def load_token_head(config: ProcessReward) -> TokenHead:
    """Load a model that labels tokens: the class that its config names, or a backbone and a head.

    Raises:
        ModelLoadError: The model cannot be loaded, or has no such head.
    """
    if config.model is not None:
        return _from_memory(config.model.eval())
    assert config.name_or_path is not None
    source = resolve_source(config.name_or_path)
    declared = read_config(config)
    architectures = getattr(declared, "architectures", None) or [""]
    if architectures[0].endswith("ForTokenClassification"):
        model = load_model(config, transformers.AutoModelForTokenClassification)
        return TokenHead(model, None)
    model = load_model(config, transformers.AutoModel)
    if config.trust_remote_code and type(model).__module__.startswith("transformers_modules"):
        return TokenHead(model, None)  # the checkpoint's own class contains the head
    stored = read_tensors(config, source, lambda key: _HEAD.match(key) is not None)
    weights = {re.sub(_HEAD, r"\1", key): value for key, value in stored.items()}
    head = build_head(weights, source)
    return TokenHead(model, head.to(model.device, model.dtype).eval())


def build_head(weights: Mapping[str, torch.Tensor], source: str) -> torch.nn.Module:
    """Build a head from its weights: one linear layer, or several with ReLU between them.

    Args:
        weights: Weights by name within the head: "weight", "summary.weight", "0.weight", "2.bias".
        source: The source of the weights, for messages.

    Raises:
        ModelLoadError: There are no weights, or their layout is not supported.
    """
    layers = sorted({name.rpartition(".")[0] for name in weights})
    numbered = all(layer.isdigit() for layer in layers)
    known = numbered or layers in ([""], ["summary"])
    if not layers or not known or any(_weight(weights, layer).ndim != 2 for layer in layers):
        found = ", ".join(sorted(weights)) or "none"
        raise ModelLoadError(
            f"{source!r} has no head that scores tokens; expected weights named score.*, v_head.*, "
            "value_head.*, reward_head.* or classifier.* of one linear layer or of numbered "
            f"layers, found: {found}. Hint: use a process reward model, or trust_remote_code=True "
            "for a checkpoint with its own code"
        )
    ordered = sorted(layers, key=int) if numbered else layers
    linears = [_linear(weights, layer) for layer in ordered]
    for first, second in pairwise(linears):
        if first.out_features != second.in_features:
            raise ModelLoadError(
                f"{source!r}: a layer of the head has {first.out_features} outputs, but the next "
                f"one has {second.in_features} inputs. Hint: use trust_remote_code=True if the "
                "checkpoint has its own code"
            )
    modules: list[torch.nn.Module] = [linears[0]]
    for linear in linears[1:]:
        modules += [torch.nn.ReLU(), linear]
    return torch.nn.Sequential(*modules)


def _from_memory(model: Any) -> TokenHead:
    """Wrap a loaded model: one with a value head (TRL), or one that returns logits."""
    head = getattr(model, "v_head", None)
    if head is None:
        return TokenHead(model, None)
    wrapped = getattr(model, "pretrained_model", model)
    return TokenHead(wrapped.base_model, head)


def _weight(weights: Mapping[str, torch.Tensor], layer: str) -> torch.Tensor:
    return weights.get(_join(layer, "weight"), torch.empty(0))


def _linear(weights: Mapping[str, torch.Tensor], layer: str) -> torch.nn.Linear:
    weight, bias = _weight(weights, layer), weights.get(_join(layer, "bias"))
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    return linear


def _join(layer: str, name: str) -> str:
    return f"{layer}.{name}" if layer else name


def read_tensors(
    config: Checkpoint, source: str, is_wanted: Callable[[str], bool]
) -> dict[str, torch.Tensor]:
    """Return weights of a checkpoint by name.

    Args:
        config: The checkpoint.
        source: Its source, as `resolve_source` returns it.
        is_wanted: Whether to read the weight with this name.
    """
    weights: dict[str, torch.Tensor] = {}
    for file in _weight_files(config, source, is_wanted):
        with safe_open(file, framework="pt") as opened:
            for key in filter(is_wanted, opened.keys()):
                weights[key] = opened.get_tensor(key)
    return weights


def _weight_files(config: Checkpoint, source: str, is_wanted: Callable[[str], bool]) -> list[str]:
    """Return the safetensors files that may hold such weights."""

    def find(name: str) -> str | None:
        return cached_file(
            source,
            name,
            revision=config.revision,
            token=hub_token(config),
            _raise_exceptions_for_missing_entries=False,
        )

    index = find(SAFE_WEIGHTS_INDEX_NAME)
    names = [SAFE_WEIGHTS_NAME]
    if index is not None:
        shards = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
        names = sorted({file for key, file in shards.items() if is_wanted(key)})
    found = [find(name) for name in [*names, _VALUE_HEAD_FILE]]
    return [file for file in found if file is not None]
