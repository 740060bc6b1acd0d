"""Reward inputs at real segment ends, other tokenizers, and small models of real classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from stars_engine import AlignParams, FunctionReward, NoSchedule, SamplingParams, StarsConfig
from stars_engine.engine.engine import StarsEngine
from stars_engine.messages import Message
from stars_engine.types import RewardInput

OPENINGS = [
    f"{subject} {verb}"
    for subject in ("This movie", "The acting", "The plot", "I", "Nobody", "The best scene")
    for verb in ("is", "was", "made me")
]

# As Qwen's, Llama 3's and Gemma's go, in short; Gemma's trims and takes no system turn.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
TURNS = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) or m.role not in ['user', 'assistant'] %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def real_borders(engine: StarsEngine) -> list[RewardInput]:
    """What a reward is asked of at more than 400 segment borders of answers of the loaded model."""
    seen: list[RewardInput] = []

    def record(item: RewardInput) -> float:
        seen.append(item)
        return 0.0

    config = StarsConfig(
        model="stars:embedded-lm",
        reward=FunctionReward(function=record, by="input", max_concurrency=1),
        align=AlignParams(schedule=NoSchedule(), segment_len=7, num_candidates=1),
        # Some answers are to end before the limit.
        sampling=SamplingParams(seed=11, max_tokens=49, n=4, logit_bias={2: 2.0}),
    )
    with StarsEngine(config, model=engine.model) as mine:
        mine.generate(OPENINGS)
    assert len(seen) >= 400
    assert len({item.text for item in seen}) >= 400
    return seen


def as_chats(items: Sequence[RewardInput]) -> Iterator[RewardInput]:
    """The same answers to conversations: one turn, three turns, a system turn."""
    for index, item in enumerate(items):
        ask = Message(role="user", content=item.prompt.text)
        turns = [
            (ask,),
            (
                Message(role="user", content="Hello."),
                Message(role="assistant", content="Hi! What film?"),
                ask,
            ),
            (Message(role="system", content="Be kind."), ask),
        ][index % 3]
        yield replace(item, prompt=replace(item.prompt, messages=turns))


def in_steps(items: Sequence[RewardInput], separator: str) -> list[RewardInput]:
    """The same answers with step borders where sentences or clauses end."""
    marked = [
        item.text.replace(". ", f".{separator}").replace(", ", f",{separator}") for item in items
    ]
    assert sum(separator in text for text in marked) > len(items) / 3
    return [replace(item, text=text) for item, text in zip(items, marked, strict=True)]


# --- tokenizers ---


def byte_tokenizer(
    texts: Sequence[str], control: Sequence[str], *, template: str | None = None, **special: Any
) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as of Qwen and Llama 3."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=list(control),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return _wrapped(backend, template, special)


def piece_tokenizer(
    texts: Sequence[str], control: Sequence[str], *, template: str | None = None, **special: Any
) -> PreTrainedTokenizerFast:
    """BPE with spaces as pieces and bytes to fall back on, as of Mistral and Gemma."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1),
        ]
    )
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=[*control, *byte_pieces], show_progress=False
    )
    # Words and lines apart while it learns, so that pieces do not span them.
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    backend.train_from_iterator([line for text in texts for line in text.split("\n")], trainer)
    backend.pre_tokenizer = None
    bos = special.get("bos_token")
    if bos is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    return _wrapped(backend, template, {"unk_token": "<unk>", **special})


def word_piece_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Lower-case word pieces between [CLS] and [SEP], as of BERT and its kin."""
    control = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=control, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(name, backend.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return _wrapped(backend, None, names)


def _wrapped(backend: Tokenizer, template: str | None, special: Any) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    tokenizer.chat_template = template
    return tokenizer


# --- models ---


def small(model_class: Any, config_class: Any, tokenizer: Any, **more: Any) -> Any:
    """A model of a real class, small, with weights large enough to tell texts apart."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return model_class(config_class(**{**sizes, **more})).eval()


@torch.inference_mode()
def plain_logits(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """What the model says of one row, alone."""
    logits: torch.Tensor = model(input_ids=torch.tensor([list(ids)])).logits[0]
    return logits.double()


# --- checkpoints ---


def save_with_head(
    directory: Path, backbone: Any, tokenizer: Any, head: dict[str, torch.Tensor]
) -> None:
    """Write a checkpoint as Skywork's and Qwen's are: a head among the weights, no class for it."""
    backbone.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    weights = load_file(directory / "model.safetensors")
    save_file({**weights, **head}, directory / "model.safetensors", metadata={"format": "pt"})


def random_head(*shapes: tuple[str, int, int], seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    head = {}
    for name, rows, columns in shapes:
        head[f"{name}.weight"] = torch.randn(rows, columns, generator=generator) / columns**0.5
        head[f"{name}.bias"] = torch.randn(rows, generator=generator)
    return head
