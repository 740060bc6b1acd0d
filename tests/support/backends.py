"""Small random models of real families, and counts of their calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from stars_engine.backends.base import DraftRequest, PrefixHandle
from stars_engine.backends.shared import SharedPrefixDecoder
from stars_engine.backends.transformers import TransformersBackend
from stars_engine.config import SamplingParams, TransformersModel

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 8},
    "gemma2": {"sliding_window": 8},
    "gemma3_text": {
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gpt_neox": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"n_layer": 2, "n_head": 4},
    "falcon": {},
    "mamba": {"state_size": 4},
    "phi3": {"sliding_window": 8},
    "olmo2": {},
    "granite": {},
    "gemma": {},
    "mixtral": {"sliding_window": 8, "num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2},
    "gpt_oss": {
        "sliding_window": 8,
        "num_local_experts": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "cohere2": {"sliding_window": 8, "logit_scale": 1.0},
    "stablelm": {},
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "head_dim": 4,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
    },
    "qwen3_next": {
        "layer_types": ["linear_attention", "full_attention"],
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
    "mamba2": {
        "num_heads": 8,
        "head_dim": 8,
        "state_size": 4,
        "n_groups": 2,
        "expand": 2,
        "chunk_size": 8,
    },
}


def random_model(
    family: str, auto: Any = AutoModelForCausalLM, *, scale: float = 1.0, **more: object
) -> Any:
    """As transformers makes it: all tokens about equally likely, whatever came before.

    Its matrices times `scale` say that what came before matters.
    """
    torch.manual_seed(0)
    fields = {**SMALL, **FAMILIES.get(family, {}), **more}
    if family in ("falcon", "stablelm"):  # its head size is computed
        del fields["head_dim"]
    model = auto.from_config(CONFIG_MAPPING[family](**fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if scale != 1 and parameter.dim() > 1:
                parameter.mul_(scale)
    return model


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
