"""Read the IMDB reviews (Maas et al. 2011) and turn them into rows of token ids."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from tokenizers import Tokenizer

IGNORED = -100  # the target index that cross_entropy skips


def read_reviews(path: Path) -> list[str]:
    """Return the review texts of one `.jsonl.gz` file, HTML line breaks turned into newlines."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        texts = (json.loads(line)["text"] for line in file)
        return [re.sub(r"\s*<br\s*/?>\s*(<br\s*/?>\s*)*", "\n", text).strip() for text in texts]


def encode_rows(
    texts: Sequence[str], tokenizer: Tokenizer, *, bos_id: int, eos_id: int, row_len: int
) -> list[list[int]]:
    """Encode each text from its beginning: `[bos] text [eos]`, cut at `row_len` tokens."""
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [[bos_id, *encoding.ids, eos_id][:row_len] for encoding in encodings]


def batches(
    rows: Sequence[Sequence[int]], *, batch_size: int, num_steps: int, seed: int
) -> Iterator[list[int]]:
    """Yield `num_steps` lists of row indices: shuffled epochs, rows of like length together."""
    rng = random.Random(seed)
    steps_left = num_steps
    while steps_left > 0:
        order = list(range(len(rows)))
        rng.shuffle(order)
        # Sorting inside pools of 50 batches keeps padding low and the order random.
        pool = 50 * batch_size
        groups = []
        for start in range(0, len(order) - batch_size + 1, pool):
            chunk = sorted(order[start : start + pool], key=lambda index: len(rows[index]))
            groups += [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
        groups = [group for group in groups if len(group) == batch_size]
        rng.shuffle(groups)
        yield from groups[:steps_left]
        steps_left -= len(groups)


def pad(rows: Sequence[Sequence[int]], *, value: int) -> torch.Tensor:
    """Right-pad rows of ids to one `(num_rows, max_len)` tensor."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])
