"""Bits per byte of the language model, compared with a 5-gram model and other language models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.data import Row, encode_rows
from training.lm import bits_per_byte
from training.ngram import NgramModel

NUM_CHARACTERS = 1000  # of each review: within the context of every model


def compare(
    directories: Sequence[Path], training: Sequence[str], dev: Sequence[str]
) -> dict[str, Any]:
    """Return bits per byte on the beginnings of `dev`; every model predicts text and end.

    Args:
        directories: Checkpoints of language models; the 5-gram model uses the first one's tokens.
        training: Texts that the 5-gram model counts.
        dev: Held-out texts; their first 1,000 characters are read.
    """
    beginnings = [text[:NUM_CHARACTERS] for text in dev]
    num_bytes = sum(len(text.encode()) for text in beginnings)
    figures: dict[str, Any] = {"dev_reviews": len(dev), "dev_bytes": num_bytes}
    for directory in directories:
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        rows = _rows(directory, beginnings)
        figures[directory.name] = {
            "parameters": model.num_parameters(),
            "bits_per_byte": bits_per_byte(model, rows, num_bytes),
        }
    figures["5-gram"] = _ngram(directories[0], training, beginnings, num_bytes)
    return figures


def _ngram(
    directory: Path, training: Sequence[str], beginnings: Sequence[str], num_bytes: int
) -> dict[str, Any]:
    rows = _rows(directory, training)
    stream = np.fromiter((token for row in rows for token in row), np.int64)
    vocab_size = int(AutoTokenizer.from_pretrained(directory).vocab_size)
    model = NgramModel(stream, vocab_size=vocab_size)
    bits = -sum(model.log2_probs(np.array(row)).sum() for row in _rows(directory, beginnings))
    assert math.isfinite(bits)
    return {
        "ngrams": [len(order.keys) for order in model.orders],
        "tokens": len(stream),
        "bits_per_byte": float(bits) / num_bytes,
    }


def _rows(directory: Path, texts: Sequence[str]) -> list[Row]:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    backend: Tokenizer = tokenizer.backend_tokenizer
    ends = {"bos_id": tokenizer.bos_token_id, "eos_id": tokenizer.eos_token_id}
    return list(encode_rows(texts, backend, **ends))
