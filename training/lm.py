"""Train the tokenizer and the language model from scratch on movie reviews."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from training.data import IGNORED, batches, pad
from training.optim import HybridOptimizer

BOS, EOS, PAD = "<|startoftext|>", "<|endoftext|>", "<|pad|>"
VOCAB_SIZE = 4096
CONTEXT_LEN = 512


def train_tokenizer(texts: Sequence[str]) -> Tokenizer:
    """Train a byte-level BPE tokenizer: no text is out of its vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def as_pretrained(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Wrap for `transformers`; raw prompts begin with BOS, as the training rows do."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=CONTEXT_LEN,
        clean_up_tokenization_spaces=False,
    )


def model_config(tokenizer: Tokenizer) -> LlamaConfig:
    """The shape of both models: 2.3 million parameters, embeddings tied."""
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=3,
        max_position_embeddings=CONTEXT_LEN,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(EOS),
        pad_token_id=tokenizer.token_to_id(PAD),
    )


def train_lm(
    rows: Sequence[Sequence[int]],
    config: LlamaConfig,
    *,
    num_steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    log: Callable[[str], None],
) -> LlamaForCausalLM:
    """Train next-token prediction on `rows`; bfloat16 autocast, float32 weights."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    optimizer = HybridOptimizer(model, lr=lr, num_steps=num_steps)
    started = time.monotonic()
    running = math.nan
    for step, picked in enumerate(
        batches(rows, batch_size=batch_size, num_steps=num_steps, seed=seed)
    ):
        loss = lm_loss(model, [rows[index] for index in picked])
        loss.backward()
        optimizer.step()
        running = loss.item() if math.isnan(running) else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 0 or step == num_steps - 1:
            log(f"lm {step}/{num_steps} loss {running:.3f} {time.monotonic() - started:.0f} s")
    return model.eval()


def lm_loss(model: LlamaForCausalLM, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Mean cross-entropy in nats per token, padding ignored."""
    pad_id = model.config.pad_token_id
    ids = pad(rows, value=pad_id)
    targets = pad(rows, value=IGNORED)[:, 1:]
    with torch.autocast("cpu", torch.bfloat16):
        # Causal attention never looks right, so right padding needs no mask.
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED
    )


@torch.inference_mode()
def bits_per_byte(model: LlamaForCausalLM, rows: Sequence[Sequence[int]], num_bytes: int) -> float:
    """Total negative log-likelihood of `rows` in bits, over the bytes of text they encode."""
    total_nats = 0.0
    for start in range(0, len(rows), 16):
        chunk = rows[start : start + 16]
        total_nats += lm_loss(model, chunk).item() * sum(len(row) - 1 for row in chunk)
    return total_nats / math.log(2) / num_bytes


def save_lm(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write float16 safetensors, config, tokenizer and generation config."""
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    model.to(torch.float16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
