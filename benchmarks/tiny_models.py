"""Tiny random models of real families, for checks on any device and for tests."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

SMALL: dict[str, Any] = {
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
FAMILIES: dict[str, dict[str, Any]] = {
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
    """Return a model as transformers makes it: all tokens are about equally likely.

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
