"""Train the tokenizer and the language model from scratch on movie reviews."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from training.data import IGNORED, Row, chunks, epochs, pad
from training.runs import Plan, train

BOS, EOS, PAD = "<|startoftext|>", "<|endoftext|>", "<|pad|>"
VOCAB_SIZE = 4096
CONTEXT_LEN = 512
SHORT_ROW_LEN = 256
SHARE_OF_SHORT_ROWS = 0.85


def train_tokenizer(texts: Sequence[str]) -> Tokenizer:
    """Train a byte-level BPE tokenizer, whose vocabulary covers every text."""
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
    """Return the shape of both models: 3.8 million parameters, embeddings tied."""
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_LEN,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(EOS),
        pad_token_id=tokenizer.token_to_id(PAD),
    )


def train_lm(
    rows: Sequence[Row],
    config: LlamaConfig,
    plan: Plan,
    *,
    compiled: bool = False,
    checkpoint: Path | None = None,
    log: Callable[[str], None],
) -> tuple[LlamaForCausalLM, float]:
    """Train next-token prediction in float32; return the model and the seconds it took."""
    torch.manual_seed(plan.seed)
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.nn.init.zeros_(parameter)  # every layer starts as the identity
    network = torch.compile(model, dynamic=True) if compiled else model
    seconds = train(
        model,
        _batches(rows, plan),
        lambda chosen: nats(network, chosen),
        plan,
        checkpoint=checkpoint,
        log=log,
    )
    return model.eval(), seconds


def _batches(rows: Sequence[Row], plan: Plan) -> Iterator[list[Row]]:
    """Yield batches: most steps read beginnings of reviews, the last ones up to the context."""
    num_short = int(SHARE_OF_SHORT_ROWS * plan.num_steps) * plan.accumulate
    short, long = ([row[:length] for row in rows] for length in (SHORT_ROW_LEN, CONTEXT_LEN))
    for group in islice(epochs(short, num_tokens=plan.micro_tokens, seed=plan.seed), num_short):
        yield [short[index] for index in group]
    for group in epochs(long, num_tokens=plan.micro_tokens, seed=plan.seed):
        yield [long[index] for index in group]


def nats(model: Callable[..., Any], rows: Sequence[Row]) -> tuple[torch.Tensor, int]:
    """Return the negative log-likelihood of `rows` after their first token, and its token count.

    Causal attention never looks right, so right padding needs no mask.
    """
    ids = pad(rows, value=0)
    targets = pad(rows, value=IGNORED)[:, 1:]
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    total = functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return total, sum(len(row) - 1 for row in rows)


@torch.inference_mode()
def bits_per_byte(model: LlamaForCausalLM, rows: Sequence[Row], num_bytes: int) -> float:
    """Return the negative log-likelihood of `rows` in bits per byte of the text they encode."""
    groups = chunks(sorted(rows, key=len), 8)
    return sum(nats(model, group)[0].item() for group in groups) / math.log(2) / num_bytes


def save_lm(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write float16 safetensors, config, tokenizer and generation config."""
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )
    model.to(torch.float16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
