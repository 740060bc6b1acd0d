"""Heads of token guards, which label every token of a conversation.

Qwen3Guard-Stream puts two heads on a plain Qwen3 backbone: one for the user's turn, one for the
answer. Each projects the hidden states, normalizes them, and computes logits of risk levels and of
categories. The layers are read from the checkpoint's safetensors, or taken from a loaded model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from stars_engine.config import GuardReward
from stars_engine.config.rewards.guard import ACTIVATIONS, check_allowed
from stars_engine.errors import ModelLoadError
from stars_engine.loading.models import load_model, read_config
from stars_engine.loading.sources import resolve_source
from stars_engine.rewards.labels import names_of
from stars_engine.rewards.token_heads import TokenHead, read_tensors

# The published layout of Qwen3Guard-Stream.
_RESPONSE_HEAD = ("risk_level_category_pre", "risk_level_category_layernorm", "risk_level_head")
_ARCHITECTURE = "Qwen3ForGuardModel"
_LABELS_OF = {
    "risk_level_head": "response_risk_level_map",
    "category_head": "response_category_map",
    "query_risk_level_head": "query_risk_level_map",
    "query_category_head": "query_category_map",
}
_MODULES = {
    "relu": torch.nn.ReLU,
    "gelu": torch.nn.GELU,
    "silu": torch.nn.SiLU,
    "tanh": torch.nn.Tanh,
}


@dataclass(frozen=True, slots=True)
class GuardHead:
    """A token guard's backbone and head.

    Attributes:
        labelled: Computes the logits of labels.
        layers: Names of the head's layers; empty if the model has its own head.
    """

    labelled: TokenHead
    layers: tuple[str, ...]


def load_guard_head(config: GuardReward) -> GuardHead:
    """Load a guard: a model with a head of its own, or a backbone and the layers of a head.

    Raises:
        ModelLoadError: The model cannot be loaded, or has no such head.
    """
    if config.model is not None:
        return _in_memory(config, config.model.eval(), config.shown_name)
    assert config.name_or_path is not None
    source = resolve_source(config.name_or_path)
    architectures = getattr(read_config(config), "architectures", None) or [""]
    if config.head is None and architectures[0].endswith("ForTokenClassification"):
        model = load_model(config, transformers.AutoModelForTokenClassification)
        return GuardHead(TokenHead(model, None), ())
    model = load_model(config, transformers.AutoModel)
    if config.trust_remote_code and type(model).__module__.startswith("transformers_modules"):
        return _in_memory(config, model, source)
    layers = config.head or (_RESPONSE_HEAD if architectures[0] == _ARCHITECTURE else ())
    if not layers:
        raise _no_head(source, f"its class is {architectures[0] or 'not named'}")
    weights = read_tensors(config, source, lambda key: key.rpartition(".")[0] in layers)
    head = build_layers(weights, layers, model.config, source)
    return GuardHead(TokenHead(model, head.to(model.device, model.dtype).eval()), layers)


def build_layers(
    weights: Mapping[str, torch.Tensor], layers: Sequence[str], config: Any, source: str
) -> torch.nn.Module:
    """Build a head from its weights.

    A layer with a matrix is linear. One with a vector is a norm: LayerNorm if it has a bias, and
    RMSNorm if it has none.

    Args:
        weights: Weights by name, such as "risk_level_head.weight".
        layers: Names of the layers in order, and activations.
        config: The config of the backbone, for the epsilon of norms.
        source: The source of the weights, for messages.

    Raises:
        ModelLoadError: A layer has no weights, or does not fit the one before it.
    """
    modules: list[torch.nn.Module] = []
    width: int | None = getattr(config.get_text_config(), "hidden_size", None)
    for name in layers:
        if name in ACTIVATIONS:
            modules.append(_MODULES[name]())
            continue
        weight, bias = weights.get(f"{name}.weight"), weights.get(f"{name}.bias")
        if weight is None or weight.ndim not in (1, 2):
            raise _no_head(source, f"no weights {name}.weight of one or two dimensions")
        if width is not None and weight.shape[-1] != width:
            raise ModelLoadError(
                f"{source!r}: {name} takes {weight.shape[-1]} values, but gets {width}. Hint: name "
                "the layers of one head in order in `head`"
            )
        layer = _layer(weight, bias, config)
        layer.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
        modules.append(layer)
        width = weight.shape[0]
    return torch.nn.Sequential(*modules)


def label_indices(config: GuardReward, head: GuardHead, num_labels: int, name: str) -> list[int]:
    """Return the indices of the allowed labels.

    Raises:
        ModelLoadError: The names of the labels are not known, do not fit the head, or lack one that
            is allowed.
    """
    labels = config.labels or _names(head, num_labels)
    if labels is None or len(labels) != num_labels:
        found = "no names" if labels is None else f"{len(labels)} names ({', '.join(labels)})"
        raise ModelLoadError(
            f"the head of {name} has {num_labels} labels, but there are {found} for them. Hint: "
            "set `labels` to the names of all labels, in order"
        )
    try:
        check_allowed(config.allowed, labels)
    except ValueError as error:
        raise ModelLoadError(f"{name}: {error}") from None
    return [labels.index(label) for label in config.allowed]


def _names(head: GuardHead, num_labels: int) -> tuple[str, ...] | None:
    """Return the names of the labels in the checkpoint's config, if it has them."""
    config = head.labelled.model.config
    given = getattr(config, _LABELS_OF.get(head.layers[-1], ""), None) if head.layers else None
    if given is None and len(config.id2label) == num_labels:
        given = names_of(config)
    if given is None:
        return None
    return tuple(str(given[key]) for key in sorted(given, key=int))


def _in_memory(config: GuardReward, model: Any, source: str) -> GuardHead:
    """Take the layers of a loaded model, or the head that it has itself."""
    published = all(hasattr(model, name) for name in _RESPONSE_HEAD)
    layers = config.head or (_RESPONSE_HEAD if published else ())
    if not layers:
        return GuardHead(TokenHead(model, None), ())
    try:
        modules = [
            _MODULES[name]() if name in ACTIVATIONS else model.get_submodule(name)
            for name in layers
        ]
    except AttributeError as error:
        raise _no_head(source, str(error)) from None
    return GuardHead(TokenHead(model.base_model, torch.nn.Sequential(*modules)), layers)


def _layer(weight: torch.Tensor, bias: torch.Tensor | None, config: Any) -> torch.nn.Module:
    if weight.ndim == 2:
        return torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    eps = getattr(config.get_text_config(), "rms_norm_eps", 1e-6)
    if bias is None:
        return torch.nn.RMSNorm(weight.shape[0], eps=eps)
    eps = getattr(config.get_text_config(), "layer_norm_eps", 1e-5)
    return torch.nn.LayerNorm(weight.shape[0], eps=eps)


def _no_head(source: str, found: str) -> ModelLoadError:
    return ModelLoadError(
        f"{source!r} has no head that labels tokens: {found}. Hint: use a Qwen3Guard-Stream or a "
        "token classification model, or name the layers of the head in `head`"
    )
